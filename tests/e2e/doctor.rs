//! `doctor` finds nothing on a clean host, and of each fault that is planted exactly that one.

use crate::support::host::{TestHost, Who};

/// One fault: planted, found, repaired.
struct Fault<'a> {
    /// What plants it, as root; `$D` is the deployment directory, `$Q` Quadlet's.
    plant: &'a str,
    /// Words before `litellm-units doctor`, for faults of the environment.
    prefix: &'a [&'a str],
    /// All lines that are not `ok`; `{D}` and `{Q}` as above, `*` for what differs from run to run.
    found: &'a [&'a str],
    /// What `doctor --fix` says that it did, if it is to repair the fault.
    fixed: &'a [&'a str],
    /// What repairs it otherwise, or cleans up after the repair, as root.
    repair: &'a str,
}

/// The exit status without a failure: of images that nobody signed, a warning stays.
const WARNED: i32 = 7;

const FAULT: Fault<'static> = Fault {
    plant: "",
    prefix: &[],
    found: &[],
    fixed: &[],
    repair: "",
};

/// A host with a running stack, to plant faults in.
struct Ward {
    host: TestHost,
    who: Who,
}

impl Ward {
    fn admit(who: Who, name: &str) -> Self {
        let host = TestHost::boot_for(who, name);
        host.units(who, &["up"]).ok();
        Self { host, who }
    }

    fn systemctl(&self) -> &'static str {
        match self.who {
            Who::Root => "systemctl",
            Who::Operator => "systemctl --user -M operator@",
        }
    }

    fn podman(&self) -> &'static str {
        match self.who {
            Who::Root => "podman",
            Who::Operator => {
                "runuser -u operator -- env -C / XDG_RUNTIME_DIR=/run/user/1000 podman"
            }
        }
    }

    fn unit_dropins(&self) -> &'static str {
        match self.who {
            Who::Root => "/run/systemd/system",
            Who::Operator => "/run/user/1000/systemd/user",
        }
    }

    #[track_caller]
    fn root(&self, script: &str) -> String {
        let (deployment, quadlets) = (self.who.deployment(), self.who.quadlets());
        self.host
            .bash(Who::Root, &format!("D={deployment} Q={quadlets}\n{script}"))
            .ok()
    }

    /// The lines of `doctor` that are not `ok`, and its exit status.
    fn doctor(&self, prefix: &[&str], arguments: &[&str]) -> (Vec<String>, i32, String) {
        let ran = self.host.run(
            self.who,
            &[prefix, &["litellm-units", "doctor"], arguments].concat(),
        );
        // Whose images nobody signed are not verified.
        let unsigned = "warning  signatures: LiteLLM signs ghcr.io/berriai/litellm:v1.108.14, but Podman does not verify it\n         hint: `litellm-units trust`\n";
        let lines = ran.stdout.replacen(unsigned, "", 1);
        let lines = lines
            .lines()
            .filter(|line| !line.starts_with("ok       "))
            .map(str::to_owned);
        (lines.collect(), ran.code, ran.stderr)
    }

    #[track_caller]
    fn is_clean(&self) {
        // What was planted may take a moment to go.
        self.host.wait(
            "a clean bill of health",
            std::time::Duration::from_secs(20),
            |_| {
                let (lines, ..) = self.doctor(&[], &[]);
                if lines.is_empty() {
                    Ok(())
                } else {
                    Err(lines.join("\n"))
                }
            },
        );
        let (lines, code, stderr) = self.doctor(&[], &[]);
        assert_eq!(
            (lines.as_slice(), code, stderr.as_str()),
            (&[] as &[String], WARNED, "")
        );
    }

    #[track_caller]
    fn treat(&self, fault: &Fault) {
        let fill = |text: &&str| {
            text.replace("{D}", self.who.deployment())
                .replace("{Q}", self.who.quadlets())
        };
        self.root(fault.plant);
        let expected: Vec<String> = fault.found.iter().map(fill).collect();
        // A health check that ran during an earlier fault counts until the next one.
        let code = self
            .host
            .wait(fault.plant, std::time::Duration::from_secs(40), |_| {
                let (lines, code, _) = self.doctor(fault.prefix, &[]);
                let found = lines.iter().zip(&expected);
                if lines.len() == expected.len() && { found }
                    .all(|(line, pattern)| matches(line, pattern))
                {
                    Ok(code)
                } else {
                    Err(format!("found: {lines:#?}\nexpected: {expected:#?}"))
                }
            });
        let failed = expected.iter().any(|line| line.starts_with("FAILURE"));
        let status = if failed { 1 } else { WARNED };
        assert_eq!(code, status, "planted: {}", fault.plant);
        if !fault.fixed.is_empty() {
            let (lines, code, stderr) = self.doctor(&[], &["--fix"]);
            let said: Vec<&str> = stderr.lines().collect();
            let expected: Vec<String> = fault.fixed.iter().map(fill).collect();
            assert_eq!(
                (said, lines.len(), code),
                (expected.iter().map(String::as_str).collect(), 0, WARNED),
                "{lines:#?}"
            );
        }
        self.root(fault.repair);
    }
}

/// Whether `line` is `pattern`, in which `*` stands for anything.
fn matches(line: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

fn faults(who: Who) {
    let name = match who {
        Who::Root => "doctor-rootful",
        Who::Operator => "doctor-rootless",
    };
    let ward = Ward::admit(who, name);
    ward.is_clean();
    platform_faults(&ward);
    env_faults(&ward);
    deployment_faults(&ward);
    network_faults(&ward);
    provider_faults(&ward);
    unit_faults(&ward);
    backup_faults(&ward);
    database_faults(&ward);
    if who == Who::Operator {
        rootless_faults(&ward);
    }
    ward.is_clean();
    faults_at_rest(&ward);
    ward.is_clean();
    let json = ward.host.units(who, &["doctor", "--json"]).stdout;
    assert!(
        json.starts_with("{\n  \"schema\": 1,\n  \"outcome\": \"warning\",\n  \"fixed\": [],\n"),
        "{json}"
    );
}

/// What the units rest on.
fn platform_faults(ward: &Ward) {
    let who = ward.who;
    // Podman's generator is gone: nothing that rests on it is reported.
    ward.treat(&Fault {
        plant: "mv /usr/lib/systemd/system-generators/podman-system-generator /root/",
        found: &[
            "FAILURE  podman: /usr/bin/podman has no Quadlet: /usr/lib/systemd/system-generators/podman-system-generator is missing",
            "         hint: install Podman 4.9 or newer from the distribution",
        ],
        repair: "mv /root/podman-system-generator /usr/lib/systemd/system-generators/",
        ..FAULT
    });

    if who == Who::Root {
        seeing(
            ward,
            "mount --rbind /sys/fs/cgroup /mnt; mount -t tmpfs tmpfs /sys/fs; mkdir /sys/fs/{cgroup,selinux}; \
             mount --move /mnt /sys/fs/cgroup; echo 1 >/sys/fs/selinux/enforce",
            &[
                "FAILURE  selinux: SELinux is enforcing, but has no policy for containers",
                "         hint: install the policy: `dnf install container-selinux`",
            ],
        );
    }

    // An old systemd: the real one, whose version a proxy of its bus makes older in passing.
    let (variable, socket) = match who {
        Who::Root => ("DBUS_SYSTEM_BUS_ADDRESS", "/run/dbus/system_bus_socket"),
        Who::Operator => ("DBUS_SESSION_BUS_ADDRESS", "/run/user/1000/bus"),
    };
    let user = who.user();
    ward.treat(&Fault {
        plant: &format!(
            r#"systemd-run --quiet --unit=old-systemd --uid={user} perl -MIO::Socket::UNIX -e '
                my ($version) = `systemctl --version` =~ /\((.*?)\)/ or die;
                (my $old = $version) =~ s/^.../249/;
                unlink my $path = "/tmp/old-systemd";
                my $server = IO::Socket::UNIX->new(Local => $path, Listen => 9) or die;
                while (my $client = $server->accept) {{
                    my $bus = IO::Socket::UNIX->new(Peer => "{socket}") or die;
                    for ([$client, $bus, 0], [$bus, $client, 1]) {{
                        next if fork;
                        my ($from, $to, $ages) = @$_;
                        while (sysread $from, my $bytes, 65536) {{
                            $bytes =~ s/\Q$version\E/$old/g if $ages;
                            syswrite $to, $bytes;
                        }}
                        shutdown $to, 1;
                        exit;
                    }}
                }}'
            until [[ -S /tmp/old-systemd ]]; do sleep 0.1; done"#
        ),
        prefix: &["env", &format!("{variable}=unix:path=/tmp/old-systemd")],
        found: &[
            "warning  systemd: systemd 249 is older than the oldest tested version",
            "         hint: upgrade the distribution: systemd 252 or newer",
        ],
        repair: "systemctl stop old-systemd.service; rm /tmp/old-systemd",
        ..FAULT
    });

    // A generator of an old Podman.
    ward.treat(&Fault {
        plant: "g=/usr/lib/systemd/system-generators/podman-system-generator
            mv $g /root/; printf '#!/bin/sh\\necho 4.3.1\\n' >$g; chmod +x $g",
        found: &[
            "FAILURE  podman: Podman 4.3 is too old: the units need 4.9 or newer",
            "         hint: upgrade to a distribution that has it: Debian 13, Ubuntu 24.04, RHEL 9.4, Fedora 43, or a later release of these",
        ],
        repair: "mv /root/podman-system-generator /usr/lib/systemd/system-generators/",
        ..FAULT
    });

    // No bus.
    let (bus, message, hint) = match who {
        Who::Root => (
            "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent",
            "can't reach systemd over the system D-Bus",
            "check that this host booted with systemd, and that D-Bus runs: `systemctl status dbus`",
        ),
        Who::Operator => (
            "DBUS_SESSION_BUS_ADDRESS=unix:path=/nonexistent",
            "can't reach the user's systemd over D-Bus",
            "log in as that user directly (ssh or `machinectl shell USER@`, not su or sudo), and run `loginctl enable-linger`",
        ),
    };
    ward.treat(&Fault {
        prefix: &["env", bus],
        found: &[
            &format!("FAILURE  dbus: {message}: *"),
            &format!("         hint: {hint}"),
        ],
        ..FAULT
    });

    // Disks.
    ward.treat(&Fault {
        plant: "mount -t tmpfs -o size=16m,nr_inodes=1000 tmpfs $D/logs",
        found: &[
            "FAILURE  disk: 16 MiB free for {D}/logs",
            "         hint: free or add space; to see what uses it: `du -xh --max-depth=2 {D}/logs | sort -h`",
        ],
        repair: "umount $D/logs",
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "mount -t tmpfs -o size=4g,nr_inodes=20 tmpfs $D/logs; touch $D/logs/{1..19}",
        found: &[
            "FAILURE  inodes: 0 of 20 inodes free for {D}/logs",
            "         hint: remove small files; to find them: `du --inodes -x --max-depth=2 {D}/logs | sort -n`",
        ],
        repair: "umount $D/logs",
        ..FAULT
    });

    // The clock: as good as at fault are files from the future.
    ward.treat(&Fault {
        plant: "touch -d '+3 days' $D/.env",
        found: &[
            "warning  clock: the clock is 2 d behind the newest file of the deployment",
            "         hint: compare with another clock; to set it: `timedatectl set-ntp true`",
        ],
        repair: "touch $D/.env",
        ..FAULT
    });
}

/// Seen from a mount namespace in which the kernel shows something else.
fn seeing(ward: &Ward, mounts: &str, found: &[&str]) {
    let script = format!("set -e; {mounts}; exec \"$@\"");
    ward.treat(&Fault {
        prefix: &["unshare", "--mount", "bash", "-c", &script, "bash"],
        found,
        ..FAULT
    });
}

/// `.env`.
fn env_faults(ward: &Ward) {
    let who = ward.who;
    let restore = "cat /root/env > $D/.env";
    ward.root("cp $D/.env /root/env");
    ward.treat(&Fault {
        plant: "sed -i 's/^POSTGRES_PASSWORD=.*/POSTGRES_PASSWORD=/' $D/.env",
        found: &[
            "FAILURE  settings: {D}/.env, line *: POSTGRES_PASSWORD has no value",
            "         hint: `litellm-units generate` adds what is missing",
        ],
        repair: restore,
        ..FAULT
    });
    for (image, message, hint) in [
        (
            "ghcr.io/berriai/litellm:main-latest",
            r#""ghcr.io/berriai/litellm:main-latest" has the floating tag "main-latest""#,
            "name a version, e.g. :v1.108.14, or add the digest (@sha256:…)",
        ),
        (
            "ghcr.io/berriai/litellm:v1.82.8",
            r#""ghcr.io/berriai/litellm:v1.82.8" is LiteLLM 1.82.8, a compromised release: it steals credentials (https://github.com/BerriAI/litellm/issues/24512)"#,
            "choose another release, and rotate every credential that this one could read",
        ),
    ] {
        ward.treat(&Fault {
            plant: &format!("sed -i 's|^LITELLM_IMAGE=.*|LITELLM_IMAGE={image}|' $D/.env"),
            found: &[
                &format!("FAILURE  images: {{D}}/.env, line *: LITELLM_IMAGE: {message}"),
                &format!("         hint: {hint}"),
            ],
            repair: restore,
            ..FAULT
        });
    }
    ward.treat(&Fault {
        plant: "echo NEW_VARIABLE=1 >> $D/.env",
        found: &[
            "warning  applied: changed since the start: litellm: NEW_VARIABLE added",
            "         hint: `litellm-units apply`",
        ],
        repair: restore,
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "chmod 644 $D/.env; install -m 640 -o $(stat -c %u $D/.env) /dev/null $D/service-key.txt",
        found: &[
            "FAILURE  secrets: {D}/.env can be read by others (mode 0644); {D}/service-key.txt can be read by others (mode 0640)",
            "         hint: `chmod go= {D}/.env && chmod go= {D}/service-key.txt`",
        ],
        fixed: &["fixed secrets: set mode 0600 of {D}/.env", "fixed secrets: set mode 0600 of {D}/service-key.txt"],
        repair: "rm $D/service-key.txt",
        ..FAULT
    });
    if who == Who::Root {
        ward.treat(&Fault {
            plant: "chown operator $D/.env",
            found: &[
                "FAILURE  ownership: others than root can change {D}/.env: it belongs to operator (mode 0600)",
                "         hint: `sudo chown -h root:root {D}/.env && sudo chmod go-w {D}/.env`",
            ],
            repair: "chown root $D/.env",
            ..FAULT
        });
        // Nothing starts with it, and nothing is installed from it.
        ward.root("chown operator $D/config; chmod 1777 /opt");
        for words in [
            &["unit", "prepare", "redis"][..],
            &["generate", "--check"],
            &["apply"],
            &["backup"],
        ] {
            assert_eq!(
                ward.host.units(who, words).all(),
                (
                    78,
                    String::new(),
                    "error: others than root can change /opt: it belongs to root (mode 1777), and 1 more\n\
                     hint: move the deployment to a directory that only root can change, and name it with `--litellm-dir DIR`\n".to_owned()
                )
            );
        }
        ward.root("chown root $D/config; chmod 755 /opt");
        ward.treat(&Fault {
            plant: "install -m 000 /dev/null $D/config/closed",
            found: &[
                "FAILURE  config: the gateway can't read {D}/config/closed (mode 0000)",
                "         hint: `sudo chown -hR root:root {D}/config && sudo chmod -R u+rX {D}/config`",
            ],
            repair: "rm $D/config/closed",
            ..FAULT
        });
    }
}

/// What is beside `.env`.
fn deployment_faults(ward: &Ward) {
    let who = ward.who;
    ward.treat(&Fault {
        plant: "cp -p $D/config/litellm-config.yaml /root/; echo 'general_setings: {}' >> $D/config/litellm-config.yaml",
        found: &[
            "FAILURE  config: {D}/config/litellm-config.yaml:*:1: unknown section \"general_setings\", which LiteLLM ignores",
            "         hint: to see all: `litellm-units config check`",
        ],
        repair: "cat /root/litellm-config.yaml > $D/config/litellm-config.yaml",
        ..FAULT
    });
    let owner = if who == Who::Root {
        "999:999"
    } else {
        "1000:1000"
    };
    ward.treat(&Fault {
        plant: "chown nolinger $D/data/redis",
        found: &[
            &format!(
                "FAILURE  data: {{D}}/data/redis belongs to user 1001, but redis runs as {}",
                &owner[..owner.len() / 2]
            ),
            &format!("         hint: as root: `chown -R {owner} {{D}}/data/redis`"),
        ],
        repair: &format!("chown {owner} $D/data/redis"),
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "mv $D/logs $D/away",
        found: &[
            "FAILURE  directories: missing, or not owned by its user: {D}/logs",
            "         hint: `litellm-units generate`",
        ],
        fixed: &["fixed directories: prepare directory {D}/logs"],
        repair: "rmdir $D/logs; mv $D/away $D/logs",
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "touch $D/docker-compose.yml",
        found: &[
            "warning  docker: {D}/docker-compose.yml is left over: `docker compose up` there would start a second stack",
            "         hint: `mv {D}/docker-compose.yml {D}/docker-compose.yml.old`",
        ],
        repair: "rm $D/docker-compose.yml",
        ..FAULT
    });
    // Podman speaks Docker's language: containers that no unit owns are what a compose stack leaves. Another server of
    // somebody's, at the port of PostgreSQL, is none of it.
    ward.treat(&Fault {
        plant: "systemd-run --quiet --unit=docker podman system service --time=0 unix:///run/docker.sock
            podman run --quiet --detach --name=own-redis --publish=127.0.0.1:5432:6379 docker.io/library/redis:7.4.6
            project=--label=com.docker.compose.project=old
            podman run --quiet --detach --name=old-redis $project --publish=127.0.0.1:6379:6379 docker.io/library/redis:7.4.6
            podman run --quiet --detach --name=old-litellm $project --entrypoint=sleep ghcr.io/berriai/litellm:v1.108.14 1h
            until [[ -S /run/docker.sock ]]; do sleep 0.1; done
            chmod 666 /run/docker.sock",
        found: &[
            "warning  docker: Docker still runs a stack on the same ports: old-redis (port 6379)",
            "         hint: in the directory of its compose file, run `docker compose down`",
        ],
        repair: "podman rm --force --time=0 own-redis old-redis old-litellm; systemctl stop docker; rm -f /run/docker.sock",
        ..FAULT
    });
}

/// Who listens, and who finds whom.
fn network_faults(ward: &Ward) {
    let podman = ward.podman();
    ward.treat(&Fault {
        plant: "mkdir $Q/litellm.container.d; printf '[Container]\\nPublishPort=24158:24157\\n' >$Q/litellm.container.d/10-open.conf",
        found: &[
            "FAILURE  loopback: {Q}/litellm.container.d/10-open.conf publishes 24158:24157 beyond this host",
            "         hint: publish on 127.0.0.1 only, and use a reverse proxy with TLS",
        ],
        repair: "rm -r $Q/litellm.container.d",
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "pkill aardvark-dns; while pgrep aardvark-dns; do sleep 0.1; done",
        found: &[
            "FAILURE  dns: the gateway's container finds no address for postgres (*), redis (*)",
            "         hint: Podman's name server (aardvark-dns) is not running or has wrong data; to restart it: `podman network reload --all`",
        ],
        repair: &format!("{podman} network reload --all"),
        ..FAULT
    });
    let inside = format!(
        "pid=$({podman} inspect --format={{{{.State.Pid}}}} litellm-postgres)\nnsenter --net --target=$pid nft"
    );
    ward.treat(&Fault {
        plant: &format!(
            "{inside} 'add table inet t; add chain inet t i {{ type filter hook input priority 0; }}; \
             add rule inet t i iifname != lo tcp dport 5432 tcp flags & (syn|ack) == syn reject with tcp reset'"
        ),
        found: &[
            "FAILURE  database: postgres:5432 can't be reached: [Errno 111] Connection refused",
            "         hint: see its log: `litellm-units logs postgres`",
        ],
        repair: &format!("{inside} delete table inet t"),
        ..FAULT
    });
}

/// What a model needs from outside.
fn provider_faults(ward: &Ward) {
    ward.treat(&Fault {
        plant: "cp -p $D/config/litellm-config.yaml /root/
            sed -i 's|^model_list:|&\\n  - {model_name: far, litellm_params: {model: openai/far, api_key: none, api_base: \"http://redis:1/v1\"}}|' $D/config/litellm-config.yaml",
        found: &[
            "FAILURE  providers: the gateway's container can't reach http://redis:1 ([Errno 111] Connection refused)",
            "         hint: check api_base in config/, the server, and the firewalls in between; a proxy is HTTPS_PROXY in .env",
            "warning  applied: changed since the start: litellm: config/litellm-config.yaml changed",
            "         hint: `litellm-units apply`",
        ],
        repair: "cat /root/litellm-config.yaml > $D/config/litellm-config.yaml",
        ..FAULT
    });
}

/// Units and what runs in them.
fn unit_faults(ward: &Ward) {
    let who = ward.who;
    let systemctl = ward.systemctl();
    let podman = ward.podman();
    let unit_dropins = ward.unit_dropins();
    ward.treat(&Fault {
        plant: "echo '# edited' >> $Q/litellm.container",
        found: &[
            "warning  drift: `generate` would: update {Q}/litellm.container",
            "         hint: see `litellm-units generate --dry-run`, then run `litellm-units apply`",
        ],
        fixed: &[
            "fixed drift: update {Q}/litellm.container",
            "fixed drift: reload systemd",
        ],
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "touch $Q/litellm-redis.container",
        found: &[
            "warning  daemon-reload: changed since systemd read it: litellm-redis.service",
            &format!("         hint: `{} daemon-reload`", who.systemctl()),
        ],
        fixed: &["fixed daemon-reload: reloaded systemd's units"],
        ..FAULT
    });
    ward.treat(&Fault {
        plant: &format!(
            "mkdir -p {unit_dropins}/litellm-redis.service.d
            printf '[Service]\\nRestart=no\\n' >{unit_dropins}/litellm-redis.service.d/50-test.conf
            {systemctl} daemon-reload
            {podman} kill --signal=KILL litellm-redis
            until {systemctl} --quiet is-failed litellm-redis.service; do sleep 0.1; done"
        ),
        found: &[
            "FAILURE  units: litellm-redis.service failed: *",
            "         | *",
            "         | *",
            "         | *",
            "         | *",
            "         | *",
            "         | *",
            "         | *",
            "         | *",
            "         hint: see why: `litellm-units logs redis`; then run `litellm-units up`",
        ],
        fixed: &["fixed units: started litellm-redis.service"],
        repair: &format!("rm -r {unit_dropins}/litellm-redis.service.d; {systemctl} daemon-reload"),
        ..FAULT
    });
    ward.treat(&Fault {
        plant: &format!("{systemctl} stop litellm-redis.service"),
        found: &[
            "FAILURE  units: litellm-redis.service has been stopped since *",
            "         hint: `litellm-units start redis`",
        ],
        repair: &format!("{systemctl} start litellm-redis.service"),
        ..FAULT
    });
    ward.treat(&Fault {
        plant: &format!(
            "{podman} commit --quiet litellm-redis localhost/other:1
            mkdir $Q/litellm-redis.container.d
            printf '[Container]\\nImage=localhost/other:1\\n' >$Q/litellm-redis.container.d/10-other.conf
            {systemctl} daemon-reload
            {systemctl} restart litellm-redis.service"
        ),
        found: &[
            "FAILURE  digests: litellm-redis does not run docker.io/library/redis@sha256:*",
            "         hint: remove the drop-in that names another image, if there is one; then run `litellm-units restart`",
        ],
        repair: &format!(
            "rm -r $Q/litellm-redis.container.d
            {systemctl} daemon-reload
            {systemctl} restart litellm-redis.service"
        ),
        ..FAULT
    });
    let gateway = format!("pid=$({podman} inspect --format={{{{.State.Pid}}}} litellm); kill");
    ward.treat(&Fault {
        plant: &format!("{gateway} -STOP $pid"),
        found: &[
            "warning  gateway: busy: /health/readiness does not answer in time; if it is blocked, its journal says where: `litellm-units logs litellm`",
        ],
        repair: &format!("{gateway} -CONT $pid"),
        ..FAULT
    });
}

/// Backups that are not made, or were not for too long.
fn backup_faults(ward: &Ward) {
    let systemctl = ward.systemctl();
    let of_user = ward.who.systemctl();
    let unit_dropins = ward.unit_dropins();
    ward.treat(&Fault {
        plant: &format!("{systemctl} disable --now litellm-backup.timer"),
        found: &[
            "warning  backup: litellm-backup.timer is not enabled, so no automatic backup is made; there is no backup yet",
            &format!("         hint: `{of_user} enable --now litellm-backup.timer`"),
        ],
        repair: &format!("{systemctl} enable --now litellm-backup.timer"),
        ..FAULT
    });
    ward.treat(&Fault {
        plant: &format!("{systemctl} disable --now litellm-recycle.timer"),
        found: &[
            "warning  timers: litellm-recycle.timer (a fresh gateway when its memory grows) is not enabled",
            &format!("         hint: `{of_user} enable --now litellm-recycle.timer`"),
        ],
        repair: &format!("{systemctl} enable --now litellm-recycle.timer"),
        ..FAULT
    });
    ward.treat(&Fault {
        plant: r#"printf '{"time": "2026-02-01T04:30:00Z", "backup": "20260201T020000Z-0a1b2c", "result": "failed", "error": "it is damaged", "succeeded": null}' >$D/.litellm-units/verification.json
            chown --reference=$D/.env $D/.litellm-units/verification.json
            chmod 600 $D/.litellm-units/verification.json"#,
        found: &[
            "warning  verification: the verification of backup 20260201T020000Z-0a1b2c failed * ago: it is damaged",
            "         hint: remove the cause, or make another backup; then run `litellm-units backup verify latest`",
        ],
        repair: "rm $D/.litellm-units/verification.json",
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "touch --date='-3 days' $D/data",
        found: &[
            "FAILURE  backup: there is no backup yet",
            "         hint: `litellm-units backup`",
        ],
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "install -d -m 700 -o $(stat -c %u $D/.env) $D/backups $D/backups/$(date -u --date='-3 days' +%Y%m%dT%H%M%SZ)-0a1b2c",
        found: &[
            "FAILURE  backup: the last backup is 3 d old",
            "         hint: `litellm-units backup`",
        ],
        ..FAULT
    });
    ward.host
        .units(ward.who, &["backup", "create", "--quiet"])
        .ok();
    ward.is_clean();
    // Five more of this deployment, from the days before, on a disk that grew by a 25th of its free space a day. None has
    // less in use than the last one: there may be little.
    let podman = ward.podman();
    ward.treat(&Fault {
        plant: &format!(
            r#"last=$(ls -d $D/backups/2* | tail -1)
            free=$(df --output=avail -B1 $D/data/postgres | tail -1)
            for days in 1 2 3 4 5; do
                id=$(date -u --date="-$days days" +%Y%m%dT%H%M%SZ)-0a1b2c
                mkdir $D/backups/$id
                jq ".id = \"$id\" | .disk_used += ((5 - $days) * $free / 25 | floor) | .database.size += 1048576 * (5 - $days)" $last/manifest.json >$D/backups/$id/manifest.json
                {podman} exec -i litellm python3 -c 'import hashlib, hmac, sys; print(hmac.new(sys.argv[1].encode(), sys.stdin.buffer.read(), hashlib.sha256).hexdigest())' \
                    $(cat $D/.litellm-units/backup-key) <$D/backups/$id/manifest.json >$D/backups/$id/manifest.hmac
            done
            chown -R --reference=$D/.env $D/backups"#
        ),
        found: &[
            "warning  growth: the disk of {D}/data/postgres is full in 2* days at * a day, of which the database is 1.0 MiB a day",
            "         hint: add space, or keep fewer backups: see docs/backup.md",
        ],
        repair: "rm -r $D/backups/*-0a1b2c",
        ..FAULT
    });
    ward.treat(&Fault {
        plant: &format!(
            "mkdir -p {unit_dropins}/litellm-backup.service.d
            printf '[Service]\\nExecStart=\\nExecStart=false\\n' >{unit_dropins}/litellm-backup.service.d/50-test.conf
            {systemctl} daemon-reload
            ! {systemctl} start litellm-backup.service"
        ),
        found: &[
            "FAILURE  backup: litellm-backup.service failed: exited with status 1; the last backup is * s old",
            "         hint: see why: `litellm-units logs litellm-backup`; then run `litellm-units backup`",
        ],
        repair: &format!(
            "rm -r {unit_dropins}/litellm-backup.service.d; {systemctl} daemon-reload
            {systemctl} start litellm-backup.service; rm -r $D/backups; touch $D/data"
        ),
        ..FAULT
    });
}

/// What takes space in the database and is not removed.
fn database_faults(ward: &Ward) {
    let psql = format!(
        "{} exec -i litellm-postgres psql --quiet -U litellm litellm",
        ward.podman()
    );
    ward.treat(&Fault {
        plant: &format!(
            "{psql} <<<'CREATE TABLE planted WITH (autovacuum_enabled = off) AS SELECT generate_series(1, 200000) AS number;
             DELETE FROM planted WHERE number > 90000;'"
        ),
        found: &[
            "warning  vacuum: planted has 110000 dead rows and 90000 live ones",
            "         hint: vacuum it while the gateway serves: see docs/database.md",
        ],
        // What this leaves is the next fault.
        repair: &format!(
            "{psql} <<<'VACUUM planted; INSERT INTO planted VALUES (1);'
             {psql} <<<'CREATE UNIQUE INDEX CONCURRENTLY planted_index ON planted (number);'"
        ),
        ..FAULT
    });
    ward.treat(&Fault {
        found: &[
            "warning  vacuum: an index was not built completely: planted_index",
            "         hint: remove or rebuild it: see docs/database.md",
        ],
        repair: &format!("{psql} <<<'DROP TABLE planted;'"),
        ..FAULT
    });
    // As after an image with another glibc.
    ward.treat(&Fault {
        plant: &format!(
            "{psql} <<<\"UPDATE pg_database SET datcollversion = '1.9' WHERE datname = 'litellm'\""
        ),
        found: &[
            "warning  collation: the indexes were sorted by version 1.9 of the collation, and PostgreSQL has *: what is in a text index may not be found",
            "         hint: rebuild the indexes, then record the version: `REINDEX DATABASE CONCURRENTLY`, `ALTER DATABASE … REFRESH COLLATION VERSION`: see docs/database.md",
        ],
        repair: &format!("{psql} <<<'ALTER DATABASE litellm REFRESH COLLATION VERSION'"),
        ..FAULT
    });
    // LiteLLM does not understand it, and deletes nothing.
    ward.treat(&Fault {
        plant: "cp -p $D/config/litellm-config.yaml /root/ && printf '\\n  maximum_spend_logs_retention_period: 30 days\\n' >>$D/config/litellm-config.yaml",
        found: &[
            "warning  applied: *",
            "         hint: *",
            "warning  request-logs: LiteLLM does not understand maximum_spend_logs_retention_period: \"30 days\", and deletes no request log",
            "         hint: write it as `30d`: see docs/database.md",
        ],
        repair: "cp -p /root/litellm-config.yaml $D/config/",
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "cp -p $D/config/litellm-config.yaml /root/ && printf '\\n  database_connection_pool_limit: 200\\n' >>$D/config/litellm-config.yaml",
        found: &[
            "warning  applied: *",
            "         hint: *",
            "warning  connections: the gateways of this host may open 400 connections with those of the standby, and PostgreSQL takes 200 (max_connections), of which backups and tools need 10",
            "         hint: lower database_connection_pool_limit in general_settings, *",
        ],
        repair: "cp -p /root/litellm-config.yaml $D/config/",
        ..FAULT
    });
}

/// The gateway has to go for these.
fn faults_at_rest(ward: &Ward) {
    let who = ward.who;
    let systemctl = ward.systemctl();
    ward.treat(&Fault {
        plant: &format!(
            "{systemctl} stop litellm.target litellm.service litellm-migrate.service litellm-redis.service litellm-postgres.service
            podman run --quiet --detach --name=squatter --publish=127.0.0.1:24157:6379 docker.io/library/redis:7.4.6"
        ),
        found: &[
            match who {
                Who::Root => "FAILURE  port: port 24157 is taken by conmon (process *)",
                Who::Operator => "FAILURE  port: port 24157 is taken by a process of another user",
            },
            "         hint: find and stop it: `ss -ltnp 'sport = :24157'`",
        ],
        repair: "podman rm --force --time=0 squatter",
        ..FAULT
    });
    let restore = "cat /root/env > $D/.env";
    ward.treat(&Fault {
        plant: "echo DATABASE_URL=postgresql://user:secret@127.0.0.1:54321/db >> $D/.env",
        found: &[
            "FAILURE  database: 127.0.0.1:54321 can't be reached: Connection refused (os error 111)",
            "         hint: check DATABASE_URL in .env, the server, and the firewalls in between",
            "warning  drift: `generate` would: *remove {Q}/litellm-postgres.container*",
            "         hint: see `litellm-units generate --dry-run`, then run `litellm-units apply`",
        ],
        repair: restore,
        ..FAULT
    });
    if who == Who::Root {
        seeing(
            ward,
            "mount -t tmpfs tmpfs /sys/fs/cgroup",
            &[
                "FAILURE  cgroup: this host uses cgroup v1, or none",
                "         hint: boot the kernel with systemd.unified_cgroup_hierarchy=1",
            ],
        );
    }
}

/// What only the deployment of a user rests on.
fn rootless_faults(ward: &Ward) {
    ward.treat(&Fault {
        prefix: &["env", "XDG_RUNTIME_DIR=/nonexistent"],
        found: &[
            "FAILURE  session: /nonexistent does not exist, so this user has no session",
            "         hint: log in as that user directly (ssh, machinectl shell USER@; not su or sudo)",
        ],
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "rm /var/lib/systemd/linger/operator",
        found: &[
            "FAILURE  linger: operator does not linger: the gateway stops at logout and does not start at boot",
            "         hint: `loginctl enable-linger operator`",
        ],
        fixed: &["fixed linger: enabled lingering"],
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "cp /etc/subuid /root/; sed -i /^operator:/d /etc/subuid",
        found: &[
            "FAILURE  subids: operator has no range in /etc/subuid, so no container can start",
            "         hint: as root: `usermod --add-subuids 231072-296607 --add-subgids 231072-296607 operator`; then as operator: `podman system migrate`",
        ],
        repair: "cp /root/subuid /etc/",
        ..FAULT
    });
    ward.treat(&Fault {
        plant: "mkdir -p /root/passt; mv /usr/bin/pasta* /root/passt/",
        found: &[
            "FAILURE  pasta: pasta is not installed, so rootless containers have no network",
            "         hint: as root: `apt install passt` or `dnf install passt`",
        ],
        repair: "mv /root/passt/* /usr/bin/",
        ..FAULT
    });
}

#[test]
fn rootful_doctor() {
    faults(Who::Root);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootless_doctor() {
    let ward = Ward::admit(Who::Operator, "doctor-user");
    ward.is_clean();
    rootless_faults(&ward);
    ward.is_clean();
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn every_fault_rootless() {
    faults(Who::Operator);
}
