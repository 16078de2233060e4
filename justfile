# The daily commands; `just` lists them. All of them run as root where they boot hosts.

set shell := ["bash", "-euo", "pipefail", "-c"]

target := env("CARGO_TARGET_DIR", "target")

# List the commands
default:
    @just --list --unsorted

# Format the code
fmt:
    cargo fmt

# Lints and documentation, with warnings denied as in CI
lint:
    cargo fmt --check
    cargo clippy --locked --all-targets --features object-stores,fault-points -- -D warnings
    # As it is installed, without the points of faults.
    cargo clippy --locked -- -D warnings
    cargo clippy --locked --features object-stores -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --locked --features object-stores,fault-points --no-deps --document-private-items

# The tests that need no host: seconds
unit *words:
    cargo nextest run -E 'not test(/^e2e::/)' {{ words }}

# Tests by name, end-to-end ones too: just test e2e::main_job
test *words:
    tests/run {{ words }}

# Everything, as CI does it
ci *words:
    .ci/run {{ words }}

# Known vulnerabilities of the dependencies; fetches the advisory database
advisories:
    cargo deny check advisories

# Throw-away hosts: just host boot a, just host exec a -- bash, just host stop a, just host list
host *words:
    tests/host/host {{ words }}

# Run the program as it is now in the host `try`, booted if need be: just try up
try *words: (_in-host "root" words)

# The same as an unprivileged user: just try-user up
try-user *words: (_in-host "operator" words)

_in-host user words:
    cargo build
    tests/host/host list | grep -q '^try ' || tests/host/host boot try
    tests/host/host put try {{ target }}/debug/litellm-units /usr/bin/litellm-units
    tests/host/host exec try --user {{ user }} -- litellm-units {{ words }}

# The main job, shown: README's first command
demo *words:
    tests/host/demo {{ words }}

# Record again what README shows
record *words:
    docs/demo/record {{ words }}

# The package for Debian and Ubuntu, in target/package
deb:
    PATH="{{ target }}/tools/bin:$PATH" packaging/build deb

# The package for Fedora and its like, in target/package
rpm:
    PATH="{{ target }}/tools/bin:$PATH" packaging/build rpm

# Times and sizes beside what they can be compared with
bench *words:
    benches/run {{ words }}
