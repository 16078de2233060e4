//! The options of the old containers that the units do not have: each with what has the same effect here.

use std::path::Path;

use secrecy::ExposeSecret;

use super::Maker;
use super::chosen::{is_shell, program, variable, words};
use crate::host::docker::{Container, DockerImage, Options};
use crate::output::bytes;
use crate::service::Service;

/// The size of `/dev/shm` that Docker gives to a container, and that of the unit of PostgreSQL.
const DOCKER_SHM: u64 = 64 << 20;
const POSTGRES_SHM: u64 = 1 << 30;

/// What Docker gives to every container. The services work without.
const DOCKER_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What is new here, and the setting with the same effect.
type Row = (String, String);

impl Maker<'_> {
    /// Notes what `container`, of which `service` takes the place, has beside its image's own.
    pub(super) fn options(
        &mut self,
        container: &Container,
        image: Option<&DockerImage>,
        service: Service,
    ) {
        let is_gateway = service == Service::Litellm;
        let (of, systemd, quadlet) = if is_gateway {
            (
                String::new(),
                "`systemctl edit litellm.service`, and the same for litellm-standby.service and further gateways".to_owned(),
                "a drop-in".to_owned(),
            )
        } else {
            (
                format!(" of service {}", container.service()),
                format!("`systemctl edit {}`", service.unit()),
                format!("a drop-in of {}.container", service.container()),
            )
        };
        let quadlet = format!("{quadlet} (docs/configuration.md, \"Drop-ins\")");
        for (what, key) in limits(&container.host_config.options) {
            self.note(format!("{what}{of}"), format!("{key} by {systemd}"));
        }
        for (what, key) in keys(container, image, service) {
            self.note(format!("{what}{of}"), format!("{key} in {quadlet}"));
        }
        for (what, how) in namespaces(container) {
            self.note(format!("{what}{of}"), how);
        }
        if is_gateway {
            self.programs(container, image);
        } else {
            self.surroundings(container, image, service, &quadlet);
        }
        if let Some(image) = image {
            let is_other = |(name, value): &(&String, &String)| {
                let by_compose = ["com.docker.compose.", "desktop.docker.io/"];
                let is_named = PROXY_LABELS.iter().chain(&by_compose);
                let mut is_named = is_named.map(|word| name.starts_with(word));
                image.config.labels.get(*name) != Some(*value) && !is_named.any(|is| is)
            };
            let labels = container.config.labels.iter().filter(is_other);
            let labels: Vec<&str> = labels.map(|(name, _)| name.as_str()).collect();
            if !labels.is_empty() {
                self.note(
                    format!("labels {}{of}", labels.join(", ")),
                    "programs that read the labels of Docker's containers do not see the new one",
                );
            }
        }
    }

    /// Notes other programs than LiteLLM in the gateway's container, and another user.
    fn programs(&mut self, container: &Container, image: Option<&DockerImage>) {
        const OWN_IMAGE: &str = "the units run LiteLLM itself: put what else the container does into an image of your own, and name that as LITELLM_IMAGE in .env";
        let entrypoint = &container.config.entrypoint;
        let is_other = image.is_some_and(|image| image.config.entrypoint != *entrypoint);
        let words = words(container);
        let mut command = words.iter().skip(1);
        let first = command.find(|word| !is_shell(word) && *word != "exec");
        let is_several =
            |word: &String| ["&&", "||", "|"].contains(&&**word) || word.ends_with(';');
        if is_other && program(&container.path) != "litellm" {
            self.note(format!("entrypoint {}", container.path), OWN_IMAGE);
        } else if let Some(first) = first
            && (!first.starts_with('-') && program(first) != "litellm"
                || words.iter().any(is_several))
        {
            // What follows may be a secret, also as the value of a variable.
            let first = first.split('=').next().unwrap_or_default();
            self.note(format!("command {first} …"), OWN_IMAGE);
        }
        let user = |name: &str| match name {
            "" | "root" | "0:0" | "root:root" => "0".to_owned(),
            name => name.to_owned(),
        };
        if image.is_some_and(|image| user(&image.config.user) != user(&container.config.user)) {
            self.note(
                format!("user {}", container.config.user),
                "the unit runs LiteLLM as the user of its image, without capabilities; for a user ID that nothing else on the host has, write USER_NAMESPACES=yes into .env (docs/platforms.md)",
            );
        }
        if let Some(seconds) = container
            .config
            .stop_timeout
            .filter(|seconds| *seconds > 60)
        {
            self.note(
                format!("stop_grace_period of {seconds} s"),
                format!(
                    "write LITELLM_DRAIN_TIMEOUT={} into .env",
                    seconds.min(3600)
                ),
            );
        }
        let running = self.chosen.gateways.iter().filter(|one| one.state.running);
        let count = running.count();
        if count > 1 {
            self.note(
                format!("{count} containers of the gateway"),
                format!("write LITELLM_REPLICAS={count} into .env (docs/performance.md)"),
            );
        }
    }

    /// Notes the addresses, mounts and variables of a server.
    fn surroundings(
        &mut self,
        container: &Container,
        image: Option<&DockerImage>,
        service: Service,
        quadlet: &str,
    ) {
        let name = container.service();
        let client = match service {
            Service::Redis => "redis redis-cli",
            _ => "postgres psql",
        };
        let published = container.published();
        if !published.is_empty() {
            let addresses: Vec<String> =
                published.into_iter().map(|(address, _)| address).collect();
            self.note(
                format!("address {} of service {name}", addresses.join(", ")),
                format!(
                    "it leads to the old server as long as that runs; the new one is published nowhere: use `litellm-units exec {client}`, or PublishPort= in {quadlet}"
                ),
            );
        }
        let data = variable(container, "PGDATA");
        for mount in &container.mounts {
            let path = mount.destination.as_str();
            let is_known = [
                "/var/lib/postgresql",
                "/docker-entrypoint-initdb.d",
                "/data",
                "/bitnami",
                "/run/secrets",
            ]
            .iter()
            .any(|known| Path::new(path).starts_with(known));
            let has_data = data
                .as_ref()
                .is_some_and(|data| Path::new(data).starts_with(path));
            if !is_known && !has_data {
                self.note(
                    format!("{} at {path} of service {name}", mount.source),
                    format!("Volume= in {quadlet}"),
                );
            }
        }
        let Some(image) = image else { return };
        if container.config.entrypoint != image.config.entrypoint {
            self.note(
                format!("entrypoint {} of service {name}", container.path),
                format!("the unit has that of the image; Entrypoint= in {quadlet}"),
            );
        }
        let mut initial = Vec::new();
        let mut others = Vec::new();
        for (variable, value) in &container.config.env {
            let of_image = image.config.env.get(variable);
            let is_own = of_image.is_none_or(|one| one.expose_secret() != value.expose_secret());
            let by_units = variable == "PGDATA"
                || variable.ends_with("_PASSWORD")
                || variable.ends_with("_PASSWORD_FILE")
                || ["POSTGRES_USER", "POSTGRES_DB", "ALLOW_EMPTY_PASSWORD"]
                    .contains(&variable.as_str());
            // An `env_file` gives the gateway's to every service.
            if !is_own || by_units || self.own.contains_key(variable) {
            } else if variable.starts_with("POSTGRES_") {
                initial.push(variable.as_str());
            } else {
                others.push(variable.as_str());
            }
        }
        if !initial.is_empty() {
            self.note(
                format!("variables {} of service {name}", initial.join(", ")),
                "the new cluster begins with other arguments (docs/configuration.md, \"Sizes of PostgreSQL\")",
            );
        }
        if !others.is_empty() {
            self.note(
                format!("variables {} of service {name}", others.join(", ")),
                format!("Environment= in {quadlet}"),
            );
        }
    }
}

/// The begins of the labels of reverse proxies.
pub(super) const PROXY_LABELS: [&str; 2] = ["traefik.", "caddy"];

/// What the units have on their own, and what can be done about it.
fn namespaces(container: &Container) -> Vec<Row> {
    let options = &container.host_config.options;
    let mut rows = Vec::new();
    for (name, mode, own) in [
        ("ipc", &options.ipc_mode, "shared memory"),
        ("pid", &options.pid_mode, "list of processes"),
        ("uts", &options.uts_mode, "host name"),
    ] {
        if mode == "host" || mode.starts_with("container:") {
            rows.push((
                format!("{name}: {mode}"),
                format!("the new container has its own {own}"),
            ));
        }
    }
    if !options.cgroup_parent.is_empty() {
        rows.push((
            format!("cgroup_parent {}", options.cgroup_parent),
            "the units are in litellm.slice: limit that by `systemctl set-property litellm.slice MemoryMax=…` and the like".into(),
        ));
    }
    let driver = options.log_config.driver.as_str();
    if !["", "json-file", "local", "journald"].contains(&driver) {
        rows.push((
            format!("logging driver {driver}"),
            "the unit writes to the journal: let what collects the logs read that (`litellm-units logs`)".into(),
        ));
    }
    rows
}

/// The limits that systemd sets.
fn limits(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |what: String, key: String| rows.push((what, key));
    if options.memory > 0 {
        row(
            format!("memory limit of {}", bytes(options.memory)),
            "MemoryMax=".into(),
        );
    }
    if options.memory_reservation > 0 {
        row(
            format!("mem_reservation of {}", bytes(options.memory_reservation)),
            format!("MemoryLow={}", options.memory_reservation),
        );
    }
    // Without a limit in the compose file, Docker allows twice the memory.
    if let Ok(limit @ 1..) = u64::try_from(options.memory_swap)
        && limit != 2 * options.memory
    {
        row(
            format!("memswap_limit of {}", bytes(limit)),
            format!("MemorySwapMax={}", limit.saturating_sub(options.memory)),
        );
    }
    // In thousandths of a processor.
    let cpus = match (options.nano_cpus, options.cpu_quota) {
        (nanos @ 1.., _) => Some(nanos / 1_000_000),
        (_, quota @ 1..) => {
            let period = Some(options.cpu_period).filter(|period| *period > 0);
            Some(quota * 1000 / period.unwrap_or(100_000))
        }
        _ => None,
    };
    if let Some(cpus) = cpus {
        let text = format!("{}.{:03}", cpus / 1000, cpus % 1000);
        row(
            format!("cpus {}", text.trim_end_matches('0').trim_end_matches('.')),
            format!("CPUQuota={}%", (cpus / 10).max(1)),
        );
    }
    if !matches!(options.cpu_shares, 0 | 1024) {
        row(
            format!("cpu_shares {}", options.cpu_shares),
            "CPUWeight=".into(),
        );
    }
    if !options.cpuset_cpus.is_empty() {
        row(
            format!("cpuset {}", options.cpuset_cpus),
            format!("AllowedCPUs={}", options.cpuset_cpus),
        );
    }
    let of_devices = [
        &options.blkio_weight_device,
        &options.blkio_device_read_bps,
        &options.blkio_device_write_bps,
        &options.blkio_device_read_iops,
        &options.blkio_device_write_iops,
    ];
    if options.blkio_weight > 0 || of_devices.iter().any(|devices| !devices.is_empty()) {
        row(
            "blkio_config".into(),
            "IOWeight=, IOReadBandwidthMax= and the like".into(),
        );
    }
    if options.oom_score_adj != 0 {
        row(
            format!("oom_score_adj {}", options.oom_score_adj),
            format!("OOMScoreAdjust={}", options.oom_score_adj),
        );
    }
    rows
}

/// What a key of a Quadlet file has a counterpart for.
fn keys(container: &Container, image: Option<&DockerImage>, service: Service) -> Vec<Row> {
    let options = &container.host_config.options;
    let is_gateway = service == Service::Litellm;
    let text = |text: &str| Vec::from_iter((!text.is_empty()).then(|| text.to_owned()));
    let flag = |is: bool| Vec::from_iter(is.then(|| "yes".to_owned()));
    let capabilities = options.cap_add.iter();
    let capabilities = capabilities.map(|name| name.trim_start_matches("CAP_"));
    let capabilities = capabilities.filter(|name| !DOCKER_CAPABILITIES.contains(name));
    let devices = options.devices.iter().map(|device| {
        let mut parts = vec![device.path_on_host.as_str()];
        let has_rights = !["", "rwm"].contains(&&*device.cgroup_permissions);
        if device.path_in_container != device.path_on_host || has_rights {
            parts.push(&device.path_in_container);
        }
        if has_rights {
            parts.push(&device.cgroup_permissions);
        }
        parts.join(":")
    });
    let gpus = options.device_requests.iter().map(|request| {
        match (request.device_ids.as_slice(), request.count) {
            ([], -1) => "all".to_owned(),
            ([], count) => count.to_string(),
            (ids, _) => ids.join(", "),
        }
    });
    let ulimits = options.ulimits.iter();
    let ulimits = ulimits.map(|limit| format!("{}={}:{}", limit.name, limit.soft, limit.hard));
    let sysctls = options.sysctls.iter();
    let tmpfs = options.tmpfs.iter().filter(|(path, _)| {
        is_gateway || !["/tmp", "/run/postgresql", "/var/run/postgresql"].contains(&path.as_str())
    });
    let tmpfs = tmpfs.map(|(path, options)| match options.as_str() {
        "" => path.clone(),
        options => format!("{path}:{options}"),
    });
    let own_shm = match service {
        Service::Postgres => POSTGRES_SHM,
        _ => DOCKER_SHM,
    };
    let shm = (options.shm_size > own_shm).then(|| bytes(options.shm_size));
    // A profile of seccomp is there as a whole.
    let security = options.security_opt.iter().filter_map(|option| {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        (name != "no-new-privileges").then(|| match value {
            value if value.starts_with('{') => format!("{name}=…"),
            _ => option.clone(),
        })
    });
    let runtime = options.runtime.as_str();
    let is_usual = ["", "runc", "crun", "io.containerd.runc.v2"].contains(&runtime);
    let directory = &container.config.working_dir;
    let directory = image.filter(|image| is_gateway && image.config.working_dir != *directory);
    let rows: [(&str, Vec<String>, &str); 21] = [
        ("extra_hosts", options.extra_hosts.clone(), "AddHost="),
        ("dns", options.dns.clone(), "DNS="),
        ("dns_search", options.dns_search.clone(), "DNSSearch="),
        ("dns_opt", options.dns_opt.clone(), "DNSOption="),
        (
            "hostname",
            Vec::from_iter(container.hostname()),
            "HostName=",
        ),
        (
            "cap_add",
            capabilities.map(str::to_owned).collect(),
            "AddCapability=",
        ),
        ("devices", devices.collect(), "AddDevice="),
        (
            "gpus",
            gpus.collect(),
            "AddDevice=nvidia.com/gpu=all, or the name of another device,",
        ),
        (
            "device_cgroup_rules",
            options.device_cgroup_rules.clone(),
            "PodmanArgs=--device-cgroup-rule=…",
        ),
        ("ulimits", ulimits.collect(), "Ulimit="),
        (
            "pids_limit",
            Vec::from_iter((options.pids_limit > 0).then(|| options.pids_limit.to_string())),
            "PidsLimit=",
        ),
        ("shm_size", Vec::from_iter(shm), "ShmSize="),
        (
            "sysctls",
            sysctls
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            "Sysctl=",
        ),
        ("tmpfs", tmpfs.collect(), "Tmpfs="),
        (
            "read_only",
            flag(is_gateway && options.readonly_rootfs),
            "ReadOnly=",
        ),
        (
            "group_add",
            options.group_add.clone(),
            "PodmanArgs=--group-add=…",
        ),
        (
            "privileged",
            flag(options.privileged),
            "AddDevice= and AddCapability= for what it needs,",
        ),
        (
            "security_opt",
            security.collect(),
            "PodmanArgs=--security-opt=…",
        ),
        (
            "runtime",
            text(if is_usual { "" } else { runtime }),
            "GlobalArgs=--runtime=…",
        ),
        (
            "annotations",
            options.annotations.keys().cloned().collect(),
            "Annotation=",
        ),
        (
            "working_dir",
            Vec::from_iter(directory.map(|_| container.config.working_dir.clone())),
            "WorkingDir=",
        ),
    ];
    let rows = rows.into_iter().filter(|(_, values, _)| !values.is_empty());
    rows.map(|(name, values, key)| (format!("{name} {}", values.join(", ")), key.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::operations::import::plan::fixtures::{containers, noted, plan};

    #[test]
    fn other_programs_than_litellm() {
        for (path, args, expected) in [
            (
                "docker/prod_entrypoint.sh",
                &["./start.sh"][..],
                Some("./start.sh"),
            ),
            (
                "/bin/sh",
                &["-c", "pip install x; litellm --port 4000"],
                Some("pip"),
            ),
            (
                "/bin/sh",
                &["-c", "KEY=sk-1 litellm --port 4000"],
                Some("KEY"),
            ),
            ("/bin/sh", &["-c", "exec litellm --port 4000"], None),
            ("litellm", &["--port", "4000"], None),
            ("litellm", &[], None),
        ] {
            let mut all = containers("llm");
            for container in all.iter_mut().filter(|one| one.service() == "litellm") {
                container.path = path.into();
                container.args = args.iter().map(|&word| word.to_owned()).collect();
            }
            let notes = noted(&plan(&all, "/root/llm", None, None).unwrap());
            let found = notes.lines().find_map(|line| line.strip_prefix("command "));
            let expected = expected.map(|word| format!("{word} …"));
            assert_eq!(found, expected.as_deref(), "{args:?}");
        }
    }

    #[test]
    fn every_key_of_a_service_is_in_the_table() {
        // The Compose Specification, 05-services.md.
        const KEYS: &str = "annotations attach build blkio_config cpu_count cpu_percent cpu_shares cpu_period cpu_quota \
             cpu_rt_runtime cpu_rt_period cpus cpuset cap_add cap_drop cgroup cgroup_parent command configs container_name \
             credential_spec depends_on deploy develop device_cgroup_rules devices dns dns_opt dns_search domainname \
             entrypoint env_file environment expose extends external_links extra_hosts gpus group_add healthcheck hostname \
             image init ipc isolation labels label_file links logging mac_address mem_limit mem_reservation mem_swappiness \
             memswap_limit models network_mode networks oom_kill_disable oom_score_adj pid pids_limit platform ports \
             post_start pre_start pre_stop privileged profiles provider pull_policy read_only restart runtime scale secrets \
             security_opt shm_size stdin_open stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits \
             use_api_socket user userns_mode uts volumes volumes_from working_dir";
        let page = include_str!("../../../../docs/from-docker-compose.md");
        let table = page.split("| key | |\n").nth(1).unwrap();
        let table = table.split("\n\n").next().unwrap();
        for key in KEYS.split_whitespace() {
            assert!(table.contains(&format!("`{key}`")), "{key}");
        }
    }
}
