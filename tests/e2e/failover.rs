//! PostgreSQL under Patroni and Redis under Sentinel lose their primary while the gateway works.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::gateway::{HELLO, Load, allow_mock_delays, chat, count_of, new_key};
use crate::support::host::{TestHost, Who};
use crate::support::releases::NEWEST;

/// What the nodes need, from Debian. An archive of their own, which only this test needs.
const PACKAGES: &str = "haproxy patroni python3-etcd etcd-server etcd-client postgresql-17 redis-server redis-sentinel";

/// Three nodes, each a network namespace and a slice, have etcd, PostgreSQL under Patroni, Redis and a Sentinel. `HAProxy` is
/// outside, as the gateway. Everything keeps its defaults, unless a comment says why not.
const SERVERS: &str = r#"
    export DEBIAN_FRONTEND=noninteractive
    install -d /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/none.conf
    # Each package would start one server for the whole host.
    systemctl mask --quiet etcd redis-server redis-sentinel patroni haproxy 2>/dev/null
    apt-get -q update
    apt-get -qy install --no-install-recommends $PACKAGES
    systemctl unmask --quiet haproxy

    ip link add outside type bridge
    ip address add 10.99.0.1/24 dev outside
    ip link set outside up
    for n in 1 2 3; do
        ip netns add node$n
        ip link add node$n master outside up type veth peer name eth0 netns node$n
        ip -n node$n link set lo up
        ip -n node$n link set eth0 up
        ip -n node$n address add 10.99.0.1$n/24 dev eth0
        install -d -o postgres /srv/node$n
        install -d -o postgres -m 700 /srv/node$n/postgres
        install -d -o redis /srv/node$n/redis
        cat >/srv/node$n/patroni.yml <<YAML
scope: llm
name: node$n
restapi: {listen: '10.99.0.1$n:8008', connect_address: '10.99.0.1$n:8008'}
etcd3: {hosts: '10.99.0.11:2379,10.99.0.12:2379,10.99.0.13:2379'}
bootstrap:
  dcs:
    # What was acknowledged outlives a primary.
    synchronous_mode: true
    postgresql: {use_pg_rewind: true}
  initdb: [encoding: UTF8, data-checksums]
postgresql:
  listen: 10.99.0.1$n:5432
  connect_address: 10.99.0.1$n:5432
  data_dir: /srv/node$n/postgres
  bin_dir: /usr/lib/postgresql/17/bin
  parameters: {unix_socket_directories: /srv/node$n}
  pg_hba: ['local all all peer', 'host all all 10.99.0.0/24 scram-sha-256', 'host replication replica 10.99.0.0/24 scram-sha-256']
  authentication:
    superuser: {username: postgres, password: super}
    replication: {username: replica, password: copy}
YAML
        cat >/srv/node$n/redis/redis.conf <<CONF
bind 10.99.0.1$n
requirepass cache-pass
masterauth cache-pass
dir /srv/node$n/redis
$([[ $n == 1 ]] || echo replicaof 10.99.0.11 6379)
CONF
        # 30 seconds by default.
        cat >/srv/node$n/redis/sentinel.conf <<CONF
bind 10.99.0.1$n
protected-mode no
dir /srv/node$n/redis
sentinel monitor llm 10.99.0.11 6379 2
sentinel auth-pass llm cache-pass
sentinel down-after-milliseconds llm 5000
CONF
        chown redis: /srv/node$n/redis/*
    done

    unit() {
        printf '%s\n' [Service] NetworkNamespacePath=/run/netns/node%i Slice=node%i.slice "User=$2" "ExecStart=$3" \
            >"/etc/systemd/system/$1@.service"
    }
    at=http://10.99.0.1%i
    unit etcd etcd "/usr/bin/etcd --name node%i --data-dir /var/lib/etcd/node%i --listen-client-urls $at:2379 \
        --advertise-client-urls $at:2379 --listen-peer-urls $at:2380 --initial-advertise-peer-urls $at:2380 --initial-cluster \
        node1=http://10.99.0.11:2380,node2=http://10.99.0.12:2380,node3=http://10.99.0.13:2380"
    unit patroni postgres '/usr/bin/patroni /srv/node%i/patroni.yml'
    unit redis redis '/usr/bin/redis-server /srv/node%i/redis/redis.conf'
    unit sentinel redis '/usr/bin/redis-sentinel /srv/node%i/redis/sentinel.conf'
    systemctl daemon-reload
    systemctl start {etcd,redis,sentinel}@{1,2,3} patroni@1

    # As in Patroni's manual.
    cat >/etc/haproxy/haproxy.cfg <<'CONF'
defaults
    mode tcp
    timeout connect 4s
    timeout client 30m
    timeout server 30m
    timeout check 5s
listen primary
    bind 10.99.0.1:5432
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions check port 8008
    server node1 10.99.0.11:5432
    server node2 10.99.0.12:5432
    server node3 10.99.0.13:5432
CONF
    systemctl enable --now --quiet haproxy
    export PGPASSWORD=super PGCONNECT_TIMEOUT=2
    for try in {1..120}; do
        ! psql -qh 10.99.0.1 -U postgres -c 'select 1' || break
        sleep 0.5
    done
    systemctl start patroni@{2,3}
    psql -qh 10.99.0.1 -U postgres -c "create role gate login password 'gate-pass'" -c 'create database company owner gate' \
        -c 'create database probe owner gate' -c '\c probe' -c 'set role gate' -c 'create table probe(at timestamptz)'
"#;

const ADDRESSES: [(&str, &str); 4] = [
    (
        "DATABASE_URL",
        "postgresql://gate:gate-pass@10.99.0.1:5432/company",
    ),
    (
        "REDIS_SENTINEL_NODES",
        r#"[["10.99.0.11",26379],["10.99.0.12",26379],["10.99.0.13",26379]]"#,
    ),
    ("REDIS_SERVICE_NAME", "llm"),
    ("REDIS_PASSWORD", "cache-pass"),
];

/// Writes again and again, one past PostgreSQL's own client, one past the gateway. A line for each that succeeded: the host's
/// uptime, and the key that the gateway made.
const PROBE: &str = r#"
    key=$(litellm-units unit secret litellm LITELLM_MASTER_KEY)
    database() {
        PGPASSWORD=gate-pass PGCONNECT_TIMEOUT=2 timeout 4 psql -qh 10.99.0.1 -U gate probe -c 'insert into probe values (now())'
    }
    gateway() {
        curl -sf --max-time 60 -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
            -d '{"models":["hello"]}' http://127.0.0.1:24157/key/generate | jq -r .key
    }
    rm -f /var/tmp/probe-end
    until [ -e /var/tmp/probe-end ]; do
        ! made=$("$1" 2>/dev/null) || { read -r now _ </proc/uptime; echo "$now $made"; }
        sleep 0.3
    done
"#;

struct Probes {
    load: Load,
    children: [Child; 2],
}

/// What became of them.
struct Outcome {
    /// The longest times without an answer, of PostgreSQL and of the gateway.
    database: f64,
    gateway: f64,
    /// The keys that the gateway acknowledged.
    keys: Vec<String>,
}

impl Probes {
    fn begin(host: &TestHost, key: &str) -> Self {
        let load = Load::begin(host, Who::Root, key);
        let begin = |name| {
            host.command(
                Who::Root,
                &["bash", "-o", "pipefail", "-c", PROBE, "probe", name],
            )
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
        };
        let children = ["database", "gateway"].map(begin);
        std::thread::sleep(Duration::from_secs(5));
        Self { load, children }
    }

    #[track_caller]
    fn end(self, host: &TestHost, what: &str) -> Outcome {
        // `new at 63.52 after 0.31 s: …`
        let failures = self.load.end(host, Who::Root);
        let failures: Vec<(f64, f64)> = { failures.iter() }
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                let begin: f64 = words[2].parse().unwrap();
                (begin, begin + words[4].parse::<f64>().unwrap())
            })
            .collect();
        let begin = failures
            .iter()
            .fold(f64::MAX, |first, (at, _)| first.min(*at));
        let failing = failures
            .iter()
            .fold(0.0, |longest: f64, (_, end)| longest.max(end - begin));
        host.sh(Who::Root, "touch /var/tmp/probe-end");
        let [database, gateway] = self.children.map(|child| {
            let said = child.wait_with_output().unwrap().stdout;
            let said = String::from_utf8(said).unwrap();
            let lines = said.lines().filter_map(|line| line.split_once(' '));
            let lines: Vec<(f64, String)> = lines
                .map(|(at, made)| (at.parse().unwrap(), made.to_owned()))
                .collect();
            let gaps = lines.windows(2).map(|pair| pair[1].0 - pair[0].0);
            (gaps.fold(0.0, f64::max), lines)
        });
        let outcome = Outcome {
            database: database.0,
            gateway: gateway.0,
            keys: gateway.1.into_iter().map(|(_, key)| key).collect(),
        };
        eprintln!(
            "{what}: longest time without an acknowledged write: {:.1} s of PostgreSQL, {:.1} s of the gateway; {} keys",
            outcome.database,
            outcome.gateway,
            outcome.keys.len()
        );
        // LiteLLM reads a key again after a minute, and refuses it while it can't.
        assert!(failing < outcome.database + MARGIN, "{failing}");
        assert!(outcome.keys.iter().all(|key| key.starts_with("sk-")));
        let found = sql(host, &count_of(&outcome.keys));
        assert_eq!(found, outcome.keys.len().to_string());
        outcome
    }
}

#[track_caller]
fn sql(host: &TestHost, statement: &str) -> String {
    let psql = "env PGPASSWORD=gate-pass psql -qAt -h 10.99.0.1 -U gate -d company -c";
    let words = [&psql.split(' ').collect::<Vec<_>>()[..], &[statement]].concat();
    host.run(Who::Root, &words).ok().trim_end().to_owned()
}

/// The number of the node that `HAProxy` takes for the primary of PostgreSQL, once it has two replicas, one of them synchronous.
#[track_caller]
fn primary(host: &TestHost) -> String {
    let script = "curl -sf --max-time 5 http://10.99.0.11:8008/cluster || curl -sf --max-time 5 http://10.99.0.12:8008/cluster";
    host.wait("three members", Duration::from_secs(180), |host| {
        let found = host.bash(Who::Root, script).stdout;
        let cluster: Value = serde_json::from_str(&found).map_err(|_| found.clone())?;
        let members = cluster["members"].as_array().ok_or(found.clone())?;
        let has = |role: &str, state: &str| {
            members
                .iter()
                .find(|member| member["role"] == role && member["state"] == state)
        };
        let leader = has("leader", "running").ok_or(found.clone())?;
        if has("sync_standby", "streaming").is_none() || has("replica", "streaming").is_none() {
            return Err(found);
        }
        let name = leader["name"].as_str().unwrap_or_default();
        Ok(name.trim_start_matches("node").to_owned())
    })
}

/// The number of the node that the Sentinels take for the primary of Redis; one node may be down.
#[track_caller]
fn redis_primary(host: &TestHost) -> String {
    let script = "for n in 1 2 3; do timeout 2 redis-cli -h 10.99.0.1$n -p 26379 sentinel get-master-addr-by-name llm | head -n 1; done | \
        sort | uniq -c | sort -rn | sed -n '1s/.*10\\.99\\.0\\.1//p'";
    host.bash(Who::Root, script).stdout.trim().to_owned()
}

/// A loss of power: no connection is closed, and nothing answers any more.
fn cut_power(host: &TestHost, node: &str) {
    let script =
        format!("ip link set node{node} down; echo 1 >/sys/fs/cgroup/node{node}.slice/cgroup.kill");
    host.sh(Who::Root, &script);
}

fn give_power(host: &TestHost, node: &str) {
    let script = format!(
        "ip link set node{node} up; systemctl reset-failed; systemctl start {{etcd,redis,sentinel,patroni}}@{node}"
    );
    host.sh(Who::Root, &script);
    primary(host);
}

/// The gateway is the same process as before, and everything is in order.
#[track_caller]
fn all_is_well(host: &TestHost, process: &str) {
    host.wait("a clean doctor", Duration::from_secs(60), |host| {
        let doctor = host.units(Who::Root, &["doctor"]);
        if doctor.code == 7 && !doctor.stdout.contains("cache:") {
            Ok(())
        } else {
            Err(doctor.stdout)
        }
    });
    assert_eq!(host.units(Who::Root, &["status"]).code, 0);
    assert_eq!(host.property(Who::Root, "litellm", "NRestarts"), "0");
    assert_eq!(host.property(Who::Root, "litellm", "MainPID"), process);
}

fn planned(host: &TestHost, key: &str) {
    let from = primary(host);
    let process = host.property(Who::Root, "litellm", "MainPID");
    let probes = Probes::begin(host, key);
    let script =
        format!("patronictl -c /srv/node1/patroni.yml switchover llm --leader node{from} --force");
    host.sh(Who::Root, &script);
    assert_ne!(primary(host), from);
    let outcome = probes.end(host, "planned switchover");
    assert!(outcome.gateway < outcome.database + MARGIN);
    all_is_well(host, &process);
}

/// Seconds that the gateway may need longer than PostgreSQL itself. The machine may be busy.
const MARGIN: f64 = 10.0;

/// Both say what is away while it is, and the rest works right after it.
fn the_primary_is_lost(host: &TestHost, key: &str) {
    let lost = primary(host);
    let process = host.property(Who::Root, "litellm", "MainPID");
    let probes = Probes::begin(host, key);
    cut_power(host, &lost);
    let failure = "FAILURE  database: 10.99.0.1:5432 can't be reached: ";
    host.wait("the failure", Duration::from_secs(25), |host| {
        let doctor = host.units(Who::Root, &["doctor"]);
        if doctor.code == 1 && doctor.stdout.contains(failure) {
            Ok(())
        } else {
            Err(doctor.stdout)
        }
    });
    host.wait("the status", Duration::from_secs(20), |host| {
        let status = host.units(Who::Root, &["status"]);
        if status.code == 4 {
            Ok(())
        } else {
            Err(status.stdout)
        }
    });
    host.wait("the next primary", Duration::from_secs(90), |host| {
        let psql = "PGPASSWORD=gate-pass PGCONNECT_TIMEOUT=2 psql -h 10.99.0.1 -U gate probe -c 'insert into probe values (now())'";
        let ran = host.bash(Who::Root, psql);
        if ran.code == 0 { Ok(()) } else { Err(ran.stderr) }
    });
    host.wait("a new key", Duration::from_secs(15), |host| {
        let ran = host.units(Who::Root, &["key", "create", "after"]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
    host.units(Who::Root, &["backup"]).ok();
    host.units(Who::Root, &["backup", "verify", "latest"]).ok();
    let outcome = probes.end(host, "loss of the primary's power");
    assert!(outcome.gateway < outcome.database + MARGIN);
    assert_eq!(
        chat(host, Who::Root, outcome.keys.last().unwrap()).as_deref(),
        Ok(HELLO)
    );
    // The lost node has one of the Sentinels.
    let doctor = host.units(Who::Root, &["doctor"]).stdout;
    let warning =
        format!("warning  cache: the gateway's container can't reach 10.99.0.1{lost}:26379 (");
    assert!(doctor.contains(&warning), "{doctor}");
    // Changes do not wait for the third node.
    let load = Load::begin(host, Who::Root, key);
    host.set_env(Who::Root, &[("LITELLM_DRAIN_TIMEOUT", "50")]);
    host.units(Who::Root, &["apply"]).ok();
    let words = ["upgrade", "--image", NEWEST.image, "--settle", "1"];
    host.units(Who::Root, &words).ok();
    load.assert_no_failure(host, Who::Root);
    assert_ne!(host.property(Who::Root, "litellm", "MainPID"), process);
    give_power(host, &lost);
    let process = host.property(Who::Root, "litellm", "MainPID");
    all_is_well(host, &process);
}

/// Requests are answered without Redis, and with the next one when the gateway tries it again.
fn redis_is_lost(host: &TestHost, key: &str, what: &str, cut: impl Fn(&str)) {
    let lost = redis_primary(host);
    let process = host.property(Who::Root, "litellm", "MainPID");
    let load = Load::begin(host, Who::Root, key);
    cut(&lost);
    host.wait("the next Redis", Duration::from_secs(60), |host| {
        let found = redis_primary(host);
        if found == lost { Err(found) } else { Ok(()) }
    });
    // The kernel ends a connection to a vanished server after 45 s. LiteLLM tries Redis again after 60 s.
    std::thread::sleep(Duration::from_secs(65));
    load.assert_no_failure(host, Who::Root);
    host.wait("the cache", Duration::from_secs(60), |host| {
        let found = ping(host);
        if found == "healthy\n" {
            Ok(())
        } else {
            Err(found)
        }
    });
    assert_eq!(
        host.property(Who::Root, "litellm", "MainPID"),
        process,
        "{what}"
    );
    assert_eq!(host.property(Who::Root, "litellm", "NRestarts"), "0");
    let journal = host.sh(Who::Root, "journalctl -u litellm --no-pager -o cat");
    assert!(!journal.contains("has been blocked"), "{what}: {journal}");
}

fn ping(host: &TestHost) -> String {
    let ping = r#"key=$(litellm-units unit secret litellm LITELLM_MASTER_KEY)
        curl -sS --max-time 20 -H "Authorization: Bearer $key" http://127.0.0.1:24157/cache/ping | jq -r .status"#;
    host.bash(Who::Root, ping).stdout
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn patroni_and_sentinel() {
    let who = Who::Root;
    let host = TestHost::boot_with("failover", &["--packages", PACKAGES]);
    let host = &host;
    host.sh(who, &format!("PACKAGES='{PACKAGES}'\n{SERVERS}"));
    host.units(who, &["generate"]).ok();
    allow_mock_delays(host, who);
    host.set_env(who, &ADDRESSES);
    host.units(who, &["up"]).ok();
    let running = host.sh(who, "podman ps --format '{{.Names}}'");
    assert_eq!(running, "litellm\n");
    assert_eq!(ping(host), "healthy\n");
    let key = &new_key(host, who);
    assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));

    planned(host, key);
    redis_is_lost(host, key, "a process that dies", |node| {
        host.sh(
            who,
            &format!("kill -9 $(systemctl show -P MainPID redis@{node})"),
        );
    });
    host.sh(who, "systemctl reset-failed; systemctl start redis@{1,2,3}");
    while primary(host) == redis_primary(host) {
        planned(host, key);
    }
    redis_is_lost(host, key, "a loss of power", |node| cut_power(host, node));
    give_power(host, &lost_node(host));
    the_primary_is_lost(host, key);
}

/// The node without power.
fn lost_node(host: &TestHost) -> String {
    let down = "ip -br link show type veth | sed -n 's/^node\\([123]\\)@.* DOWN .*/\\1/p'";
    host.sh(Who::Root, down).trim().to_owned()
}
