//! The arguments of every process of a host, as a user without rights sees them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::host::{TestHost, Who};

/// What a URL has to encode.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Reads `/proc` a hundred times a second, and writes down what it has not seen yet.
const WATCHER: &str = r#"#!/usr/bin/perl
use strict;
$| = 1;
my %seen;
while (1) {
    opendir my $proc, '/proc' or die;
    for my $process (grep /^\d+$/, readdir $proc) {
        open my $file, '<', "/proc/$process/cmdline" or next;
        local $/;
        my $line = <$file> // next;
        $line =~ tr/\0\n/  /;
        print "$line\n" unless $seen{$line}++;
    }
    closedir $proc;
    select undef, undef, undef, 0.01;
}
"#;

/// Looks from the beginning until [`Arguments::seen`].
#[derive(Debug)]
pub(crate) struct Arguments<'a> {
    host: &'a TestHost,
}

impl<'a> Arguments<'a> {
    /// Begins to look.
    #[track_caller]
    pub(crate) fn watch(host: &'a TestHost) -> Self {
        host.write(Who::Root, "/usr/local/bin/arguments", WATCHER);
        host.sh(
            Who::Root,
            "chmod 755 /usr/local/bin/arguments
             systemd-run --quiet --unit arguments --uid nobody --property StandardOutput=file:/root/arguments arguments",
        );
        Self { host }
    }

    /// Ends it. Gives a line for each command line that was seen.
    #[track_caller]
    pub(crate) fn seen(self) -> String {
        self.host
            .sh(Who::Root, "systemctl stop arguments; cat /root/arguments")
    }
}

/// What must not be among arguments: a value as it is, and as it is in a URL.
pub(crate) fn forms(secret: &str) -> Vec<String> {
    vec![
        secret.to_owned(),
        utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string(),
        utf8_percent_encode(secret, UNRESERVED).to_string(),
    ]
}
