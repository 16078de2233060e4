//! Functions of the programs in the containers that need neither LiteLLM nor a server.
#![expect(clippy::unwrap_used, reason = "that is how a test fails")]

use std::process::Command;

/// Defines `function`, which takes one out of a program.
const FUNCTION: &str = r#"
import ast, contextlib, io, os, re, sys, tempfile, types

def function(path, name, **names):
    body = [node for node in ast.parse(open(path).read()).body if getattr(node, "name", None) == name]
    exec(compile(ast.Module(body, []), path, "exec"), names)
    return names[name]
"#;

fn python(script: &str, arguments: &[&str]) -> String {
    let output = Command::new("python3")
        .args(["-I", "-c", &format!("{FUNCTION}\n{script}")])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// With an external server, systemd runs the migration again after 1 and not after 2; never after 78.
#[test]
fn errors_of_the_migration() {
    for (words, status) in [
        ("P1000: Authentication failed against database server", "78"),
        (
            "P1001: Can't reach database server at `db.example.test:5432`",
            "1",
        ),
        ("P1003: Database `litellm` does not exist", "2"),
        (
            "P1010: User `litellm` was denied access on the database",
            "2",
        ),
        ("FATAL: sorry, too many clients already", "1"),
        (
            "FATAL: remaining connection slots are reserved for roles with the SUPERUSER attribute",
            "1",
        ),
        ("FATAL: no more connections allowed (max_client_conn)", "1"),
        (
            "FATAL: the database system is not yet accepting connections",
            "1",
        ),
        (
            "Lost or could not establish v2 migration coordination with the database: P1001: Can't reach database server",
            "1",
        ),
        (
            "Timed out waiting for another v2 migration resolver after 600s.",
            "1",
        ),
        (
            "Database migration failed and cannot be auto-recovered. Prisma error:\nP3018: A migration failed to apply",
            "2",
        ),
        ("ERROR: permission denied for schema public", "2"),
    ] {
        let script = "print(function('templates/migrate.py', 'status', re=re)(sys.argv[1]))";
        assert_eq!(python(script, &[words]).trim(), status, "{words}");
    }
}

/// Two releases can have the same newest migration, and another number of them.
#[test]
fn schemas_of_earlier_releases() {
    let script = r#"
with tempfile.TemporaryDirectory() as place:
    for name in ("20260729000000_a", "20260731000000_b"):
        os.makedirs(f"{place}/migrations/{name}")
    package = types.SimpleNamespace(origin=f"{place}/__init__.py")
    modules = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: package))
    check = function(
        "units/serve.py", "check_schema", os=os, re=re, sys=sys, importlib=modules, SCHEMA="",
        open=lambda path: io.StringIO(sys.argv[1]),
    )
    try:
        with contextlib.redirect_stderr(sys.stdout):
            check()
        print("serves")
    except SystemExit as end:
        print(end.code)
"#;
    for record in [
        "20260731000000_b 00002\n",
        "20260731000000_b 00003\n",
        "20260801000000_c\n",
        "20260801000000_c 00001\n",
        // Of units of an earlier version.
        "20260731000000_b\n",
    ] {
        assert_eq!(python(script, &[record]), "serves\n", "{record}");
    }
    for (record, newest) in [
        ("20260731000000_b 00001\n", "20260731000000_b"),
        ("20260730000000_z 00002\n", "20260730000000_z"),
        ("20260730000000_z\n", "20260730000000_z"),
    ] {
        let expected = format!(
            "the database has the schema of an earlier release (newest migration: {newest}); this release needs 2 \
             migrations up to 20260731000000_b. To migrate it and to start this release: litellm-units up. If a drop-in \
             of litellm.service names this image, name it in .env instead.\n78\n"
        );
        assert_eq!(python(script, &[record]), expected, "{record}");
    }
}

/// A connection that the kernel has ended is reported, and a wait without an answer is not.
#[test]
fn lost_connections_to_redis() {
    let script = r#"
import asyncio
class Reader:
    error = None
    def exception(self): return self.error
class Connection:
    _reader, answer = Reader(), None
    async def read_response(self, timeout): return self.answer
function("units/serve.py", "report_lost_connections")(Connection, ConnectionError)
def ask():
    try: print(asyncio.run(Connection().read_response(timeout=1)))
    except ConnectionError as error: print(f"{error}; {type(error.__cause__).__name__}")
ask()
Reader.error = OSError(110, "Connection timed out")
ask()
Connection.answer = b"PONG"
ask()
Connection._reader, Connection.answer = None, None
ask()
"#;
    assert_eq!(
        python(script, &[]),
        "None\nconnection lost: [Errno 110] Connection timed out; TimeoutError\nb'PONG'\nNone\n"
    );
}

/// No chart differs from the table of docs/benchmarks.md.
#[test]
fn charts_are_those_of_the_table() {
    let ran = Command::new("python3")
        .args(["benches/charts", "--check"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}
