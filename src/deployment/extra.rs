//! Units of the operator's own: each `extra.d/NAME.container` is a Quadlet file, and becomes a unit beside those of the
//! stack. What is a directory there is data of theirs.

use std::path::{Component, Path, PathBuf};

use crate::deployment::env_file::EnvFile;
use crate::deployment::settings::{
    ContainerSecret, SecretTarget, Settings, bypass_proxy, value_of,
};
use crate::deployment::snapshot;
use crate::error::{Failure, PathContext, Result};
use crate::host::files::{self, files_of_extras};
use crate::host::paths::Paths;
use crate::image::ImageReference;
use crate::service::{Instance, Service};

/// One unit of the operator's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Its file.
    path: PathBuf,
    /// Its names.
    pub service: Service,
    /// What it runs.
    pub image: ImageReference,
    /// Its other lines, as they are in the unit.
    pub text: String,
    /// What the operator should know of them.
    pub warnings: Vec<String>,
    /// The places below `extra.d/` that are mounted, by the number of their line.
    places: Vec<(usize, PathBuf)>,
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its number.
    pub line: usize,
    /// Words, as the end of a sentence.
    pub message: String,
    /// The next step.
    pub hint: String,
}

/// The most bytes of a file directly in `extra.d/`: each configuration that is kept has a copy.
const LIMIT: u64 = 1 << 20;

/// Reads every file of `extra.d/`, for a deployment with this `.env`.
pub(crate) fn load(paths: &Paths, env: &EnvFile) -> Result<Vec<Extra>> {
    let mut extras = Vec::new();
    for path in files_of_extras(&paths.deployment)? {
        let size = std::fs::metadata(&path).map(|found| found.len());
        if size.path_context("can't examine", &path)? > LIMIT {
            return Err(wrong(
                &path,
                "is larger than 1 MiB, and files directly in extra.d/ are kept with each configuration",
                "move it into a directory, which is data",
            ));
        }
        let kind = path.extension().unwrap_or_default();
        if ["volume", "network", "pod", "kube", "image", "build"]
            .contains(&&*kind.to_string_lossy())
        {
            return Err(wrong(
                &path,
                "is no container, and only containers become units",
                "write `Volume=NAME:/PATH` for a volume; the network is that of the gateway",
            ));
        }
        if kind != "container" {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let service = Service::extra(&name)
            .map_err(|problem| wrong(&path, &format!("{name:?} {problem}"), "rename the file"))?;
        let mut text = String::new();
        files::open_regular(&path)
            .and_then(|mut file| std::io::Read::read_to_string(&mut file, &mut text))
            .path_context("can't read", &path)?;
        let at = |problem: Problem| {
            Failure::config(format!(
                "{}, line {}: {}",
                path.display(),
                problem.line,
                problem.message
            ))
            .hint(problem.hint)
        };
        let mut extra = parse(service, &text, env, paths).map_err(at)?;
        for warning in &mut extra.warnings {
            warning.insert_str(0, &format!("{}, ", path.display()));
        }
        extra.path.clone_from(&path);
        extras.push(extra);
    }
    Ok(extras)
}

/// Refuses mounts of what does not exist. Only before an operator's own change: a restore and a rollback bring the files of
/// `extra.d/`, but no data, and must not fail for it.
pub(crate) fn refuse_missing(extras: &[Extra]) -> Result<()> {
    for extra in extras {
        if let Some((line, place)) = extra.places.iter().find(|(_, place)| !place.exists()) {
            let (file, place) = (extra.path.display(), place.display());
            return Err(
                Failure::config(format!("{file}, line {line}: {place} does not exist"))
                    .hint("make it, for the user of the container, before the unit starts")
                    .into(),
            );
        }
    }
    Ok(())
}

fn wrong(path: &Path, problem: &str, hint: &str) -> anyhow::Error {
    Failure::config(format!("{}: {problem}", path.display()))
        .hint(hint)
        .into()
}

/// Reads one file. What would break the stack is refused; the rest is for Podman to judge.
///
/// # Errors
/// With the first line that is refused.
pub fn parse(service: Service, text: &str, env: &EnvFile, paths: &Paths) -> Result<Extra, Problem> {
    let mut reader = Reader {
        service,
        env,
        paths,
        line: 0,
        section: "",
        continues: false,
        image: None,
        text: String::new(),
        warnings: Vec::new(),
        places: Vec::new(),
    };
    for raw in text.lines() {
        reader.line += 1;
        let read = reader.take(raw);
        read.map_err(|refused| Problem {
            line: reader.line,
            message: refused.0,
            hint: refused.1,
        })?;
    }
    let Some(image) = reader.image else {
        return Err(Problem {
            line: reader.line.max(1),
            message: "[Container] has no Image=".into(),
            hint: "add it, with a version tag or a digest".into(),
        });
    };
    Ok(Extra {
        service,
        path: PathBuf::new(),
        image,
        text: reader.text,
        warnings: reader.warnings,
        places: reader.places,
    })
}

/// Why a line is refused, and the next step.
type Refused = (String, String);

fn refuse<T>(why: impl Into<String>, hint: impl Into<String>) -> Result<T, Refused> {
    Err((why.into(), hint.into()))
}

/// What was read up to a line.
struct Reader<'a> {
    service: Service,
    env: &'a EnvFile,
    paths: &'a Paths,
    line: usize,
    section: &'a str,
    /// Whether the line before ends with `\`.
    continues: bool,
    image: Option<ImageReference>,
    text: String,
    warnings: Vec<String>,
    places: Vec<(usize, PathBuf)>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, raw: &'a str) -> Result<(), Refused> {
        let trimmed = raw.trim();
        let is_comment = trimmed.starts_with(['#', ';']);
        let is_rest = self.continues;
        // Podman's releases differ in what they make of these, and no line may pass unread.
        if is_rest && is_comment {
            let hint = "move it in front of that line";
            return refuse("a comment within a line that goes on", hint);
        }
        if trimmed.ends_with('\\') && !is_comment && !raw.ends_with('\\') {
            return refuse("blanks behind the \\ at its end", "remove them");
        }
        self.continues = trimmed.ends_with('\\') && !is_comment;
        if is_comment || is_rest || trimmed.is_empty() {
            self.text.extend([raw, "\n"]);
            return Ok(());
        }
        if let Some(name) = trimmed.strip_prefix('[') {
            self.section = name.trim_end_matches(']');
            let problem = match self.section {
                "Unit" | "Container" | "Service" => {
                    self.text.extend([raw, "\n"]);
                    return Ok(());
                }
                "Install" => "[Install] has no use, since the unit starts and stops with the stack"
                    .to_owned(),
                other => format!("[{other}] is none of [Unit], [Container] and [Service]"),
            };
            return refuse(problem, "remove the section");
        }
        if self.section.is_empty() {
            let hint = "write it below [Unit], [Container] or [Service]";
            return refuse("it is in no section", hint);
        }
        let Some((key, value)) = trimmed.split_once('=') else {
            return refuse("it is no `KEY=VALUE`", "correct the line");
        };
        let (key, value) = (key.trim_end(), value.trim_start());
        if let Some(value) = self.value(key, value)? {
            self.text.extend([key, "=", &value, "\n"]);
        }
        Ok(())
    }

    /// The value that the unit gets; none for what is not a line of it.
    fn value(&mut self, key: &str, value: &str) -> Result<Option<String>, Refused> {
        let is_read = matches!(
            (self.section, key),
            ("Container", "Image" | "Secret" | "Volume" | "Mount")
                | ("Container" | "Service", "EnvironmentFile")
        );
        if is_read && self.continues {
            let why = format!("{key}= goes on in the next line");
            return refuse(why, "write it in one line");
        }
        Ok(Some(match (self.section, key) {
            ("Container", "Image") if self.image.is_some() => {
                return refuse("a second Image=", "remove one of them");
            }
            ("Container", "Image") => {
                let parsed = ImageReference::parse(value);
                let image = parsed.map_err(|error| (error.to_string(), error.hint().to_owned()));
                self.image = Some(image?);
                return Ok(None);
            }
            ("Container", "ContainerName" | "Network" | "Pull" | "Pod") => {
                let name = self.service.name();
                return refuse(
                    format!("{key}= is set by litellm-units"),
                    format!("remove it: the gateway reaches the container as http://{name}:PORT"),
                );
            }
            ("Container", "PublishPort") if !is_loopback(value) => {
                return refuse(
                    format!("PublishPort={value} is open beyond this host"),
                    "write PublishPort=127.0.0.1:PORT:PORT, and use a reverse proxy with TLS",
                );
            }
            ("Container", "Environment") if !value.contains('=') => {
                return refuse(
                    format!("Environment={value} has no value"),
                    format!("for a variable of .env, write `Secret={value},type=env`"),
                );
            }
            ("Container", "Secret") => {
                let name = value.split(',').next().unwrap_or_default();
                if self.env.get(name).is_none() {
                    let why = format!("{name:?} is no variable of .env");
                    return refuse(why, "add it to .env, or correct the name");
                }
                let target = if value.contains(",target=") {
                    String::new()
                } else {
                    format!(",target={name}")
                };
                format!("{}.{value}{target}", self.service.container())
            }
            ("Container", "Volume") => match value.split_once(':') {
                Some((source, rest)) => format!("{}:{rest}", self.resolve(source)?),
                None => self.resolve(value)?,
            },
            ("Container", "Mount") => {
                let part = |part: &str| match part.split_once('=') {
                    Some((name @ ("source" | "src"), source)) => {
                        Ok(format!("{name}={}", self.resolve(source)?))
                    }
                    _ => Ok(part.to_owned()),
                };
                let parts: Result<Vec<_>, Refused> = value.split(',').map(part).collect();
                parts?.join(",")
            }
            ("Container" | "Service", "EnvironmentFile") => {
                let file = value.strip_prefix('-').unwrap_or(value);
                let optional = if file == value { "" } else { "-" };
                // Quadlet takes any other path as one beside the unit.
                let is_whole = file.starts_with(['/', '.', '%']);
                let beside = if is_whole { "" } else { "./" };
                format!("{optional}{}", self.resolve(&format!("{beside}{file}"))?)
            }
            ("Container", "AddCapability" | "PodmanArgs" | "GlobalArgs") => {
                let effect = if key == "AddCapability" {
                    "gives the container rights that can reach the host"
                } else {
                    "is passed on to Podman as it is"
                };
                let line = self.line;
                self.warnings
                    .push(format!("line {line}: {key}={value} {effect}"));
                value.to_owned()
            }
            _ => value.to_owned(),
        }))
    }

    /// The source of a mount: Quadlet would look for a relative one beside the unit.
    fn resolve(&mut self, source: &str) -> Result<String, Refused> {
        let mut path = PathBuf::from(source);
        if source.starts_with('.') {
            let extra = self.paths.extra();
            let is_inside = path
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if !is_inside {
                let why = format!("{source} is outside of {}", extra.display());
                return refuse(why, "write the absolute path");
            }
            let parts = path.components().filter(|part| *part != Component::CurDir);
            path = extra.join(parts.collect::<PathBuf>());
            self.places.push((self.line, path.clone()));
            // Of what the operator wrote, specifiers are the operator's.
            let (directory, path) = (extra.display().to_string(), path.display().to_string());
            return Ok(path.replacen(&directory, &directory.replace('%', "%%"), 1));
        }
        let env = self.paths.env_file();
        // There may be another way to it, or a link.
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let holds = path.is_absolute() && real(&env).starts_with(real(&path));
        let (line, env_path) = (self.line, env.display());
        if holds && real(&path) == real(&env) {
            return refuse(
                format!("the container would get every secret of {env_path}"),
                "name the variables that it needs: `Secret=NAME,type=env`",
            );
        }
        if holds {
            self.warnings.push(format!(
                "line {line}: the container can read every secret of {env_path}"
            ));
        }
        Ok(path.display().to_string())
    }
}

/// Whether `[IP:][PORT:]PORT` is for connections from this host only.
fn is_loopback(port: &str) -> bool {
    port.starts_with("[::1]:") || port.starts_with("127.") && port.split(':').count() == 3
}

/// The units of the operator's own that are installed, in the order of their names.
pub(crate) fn installed(paths: &Paths) -> Vec<Service> {
    let entries = files::entries(&paths.quadlets).unwrap_or_default();
    let mut found: Vec<Service> = { entries.iter() }
        .filter_map(|path| Service::extra_of(files::name(path)?))
        .collect();
    found.sort();
    found
}

/// Every instance that this host may have, in start order.
pub(crate) fn instances(paths: &Paths) -> impl Iterator<Item = Instance> + use<> {
    Instance::all().chain(installed(paths).into_iter().map(Instance::from))
}

/// Those of [`installed`] that still have their file in `extra.d/`.
pub(crate) fn wanted(paths: &Paths) -> Vec<Service> {
    let mut found = installed(paths);
    found.retain(|service| source(paths, *service).exists());
    found
}

/// Those of [`installed`] whose file in `extra.d/` was removed.
pub(crate) fn former(paths: &Paths) -> Vec<Service> {
    let mut found = installed(paths);
    found.retain(|service| !source(paths, *service).exists());
    found
}

/// The file in `extra.d/` of such a unit.
pub(crate) fn source(paths: &Paths, service: Service) -> PathBuf {
    paths.extra().join(format!("{}.container", service.name()))
}

/// What a service gets from `.env`, and nothing more.
pub(crate) fn container_secrets(
    paths: &Paths,
    settings: &Settings,
    service: Service,
) -> Result<Vec<ContainerSecret>> {
    if !service.is_extra() {
        let mut secrets = settings.container_secrets(service);
        if service == Service::Litellm {
            let extras = wanted(paths);
            let names: Vec<&str> = extras.iter().map(|extra| extra.name()).collect();
            bypass_proxy(&mut secrets, &names);
        }
        return Ok(secrets);
    }
    let (unit, path) = (unit_text(paths, service), paths.env_file());
    let env = snapshot::env_in_use(paths)?;
    let prefix = format!("Secret={}.", service.container());
    let names = unit
        .lines()
        .filter_map(|line| line.strip_prefix(&prefix)?.split(',').next());
    let mut secrets = Vec::new();
    for name in names {
        if let Some(value) = value_of(&env, &path, name)? {
            secrets.push(ContainerSecret {
                name: name.to_owned(),
                target: SecretTarget::Variable,
                value,
            });
        }
    }
    Ok(secrets)
}

/// The files of `extra.d/` that a unit names.
pub(crate) fn mounted(paths: &Paths, service: Service) -> Result<Vec<PathBuf>> {
    let unit = unit_text(paths, service);
    let mut found = files_of_extras(&paths.deployment)?;
    found.retain(|file| file.to_str().is_some_and(|file| unit.contains(file)));
    Ok(found)
}

fn unit_text(paths: &Paths, service: Service) -> String {
    std::fs::read_to_string(paths.unit_file(service.into())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::paths::Scope;

    fn read(text: &str) -> Result<Extra, Problem> {
        let env = EnvFile::parse("OPENAI_API_KEY=sk-1\nEMPTY=\n").unwrap();
        let service = Service::extra("filter").unwrap();
        parse(service, text, &env, &Paths::elsewhere(Scope::System))
    }

    #[test]
    fn lines_become_those_of_a_unit() {
        let extra = read(
            "# a filter\n[Unit]\nBefore=litellm.service\n\n[Container]\nImage = registry.example.com/filter:1.2\n\
             Environment=MODE=strict\nSecret=OPENAI_API_KEY,type=env\nSecret=EMPTY,type=env,target=TOKEN\n\
             Volume=./filter.toml:/etc/filter.toml:ro\nVolume=cache:/var/cache\nVolume=/srv/models:/models:ro,z\n\
             Mount=type=bind,source=./rules,destination=/rules\nEnvironmentFile=filter.env\nPublishPort=127.0.0.1:9090:9090\n\
             Exec=serve \\\n  --all=[yes]\n",
        );
        let extra = extra.unwrap();
        assert_eq!(extra.image.as_str(), "registry.example.com/filter:1.2");
        assert_eq!(extra.warnings, [""; 0]);
        assert_eq!(
            extra.text,
            "# a filter\n[Unit]\nBefore=litellm.service\n\n[Container]\n\
             Environment=MODE=strict\n\
             Secret=litellm-extra-filter.OPENAI_API_KEY,type=env,target=OPENAI_API_KEY\n\
             Secret=litellm-extra-filter.EMPTY,type=env,target=TOKEN\n\
             Volume=/opt/litellm-server/extra.d/filter.toml:/etc/filter.toml:ro\nVolume=cache:/var/cache\n\
             Volume=/srv/models:/models:ro,z\n\
             Mount=type=bind,source=/opt/litellm-server/extra.d/rules,destination=/rules\n\
             EnvironmentFile=/opt/litellm-server/extra.d/filter.env\n\
             PublishPort=127.0.0.1:9090:9090\nExec=serve \\\n  --all=[yes]\n"
        );
        let places: Vec<_> = extra.places.iter().map(|(line, _)| *line).collect();
        assert_eq!(places, [10, 13, 14]);
    }

    #[test]
    fn what_would_break_the_stack_is_refused() {
        let container = "[Container]\nImage=registry.example.com/filter:1.2\n";
        for (lines, line, message) in [
            ("", 1, "[Container] has no Image="),
            ("[Container]\nExec=a\n", 2, "[Container] has no Image="),
            (
                "[Container]\nImage=registry.example.com/filter:latest\n",
                2,
                "\"registry.example.com/filter:latest\" has the floating tag \"latest\"",
            ),
            (
                "[Container]\nImage=registry.example.com/filter\n",
                2,
                "\"registry.example.com/filter\" has no version tag and no digest",
            ),
            ("Image=registry.example.com/a:1\n", 3, "a second Image="),
            ("Network=host\n", 3, "Network= is set by litellm-units"),
            (
                "ContainerName=x\n",
                3,
                "ContainerName= is set by litellm-units",
            ),
            (
                "[Install]\nWantedBy=default.target\n",
                3,
                "[Install] has no use, since the unit starts and stops with the stack",
            ),
            (
                "[Kube]\n",
                3,
                "[Kube] is none of [Unit], [Container] and [Service]",
            ),
            (
                "PublishPort=80:80\n",
                3,
                "PublishPort=80:80 is open beyond this host",
            ),
            (
                "PublishPort=0.0.0.0:80:80\n",
                3,
                "PublishPort=0.0.0.0:80:80 is open beyond this host",
            ),
            ("Environment=A\n", 3, "Environment=A has no value"),
            (
                "Secret=NONE,type=env\n",
                3,
                "\"NONE\" is no variable of .env",
            ),
            (
                "Volume=../.env:/x\n",
                3,
                "../.env is outside of /opt/litellm-server/extra.d",
            ),
            (
                "[Service]\nEnvironmentFile=-/opt/litellm-server/.env\n",
                4,
                "the container would get every secret of /opt/litellm-server/.env",
            ),
            (
                "Exec=a \\\n\nPull=always\n",
                5,
                "Pull= is set by litellm-units",
            ),
            (
                "Secret=OPENAI_API_KEY,\\\ntype=env\n",
                3,
                "Secret= goes on in the next line",
            ),
            ("nonsense\n", 3, "it is no `KEY=VALUE`"),
            // Podman's releases would read these in different ways.
            (
                "Exec=a \\\n# b\nNetwork=host\n",
                4,
                "a comment within a line that goes on",
            ),
            (
                "Exec=a \\ \nNetwork=host\n",
                3,
                "blanks behind the \\ at its end",
            ),
        ] {
            let whole = lines.is_empty() || lines.starts_with("[Container]");
            let text = format!("{}{lines}", if whole { "" } else { container });
            let problem = read(&text).unwrap_err();
            assert_eq!((problem.line, &*problem.message), (line, message), "{text}");
        }
        let problem = read(&format!("RequiredBy=a.target\n{container}")).unwrap_err();
        assert_eq!(
            (problem.line, &*problem.message),
            (1, "it is in no section")
        );
    }

    /// As docs/notices.md has them copied.
    #[test]
    fn examples_of_monitoring() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths {
            deployment: root.path().to_owned(),
            ..Paths::elsewhere(Scope::System)
        };
        std::fs::create_dir_all(paths.extra().join("metrics")).unwrap();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/examples");
        let copy = |file: &Path| {
            let text = std::fs::read_to_string(file)
                .unwrap()
                .replace("#relay:", "");
            std::fs::write(paths.extra().join(files::name(file).unwrap()), &text).unwrap();
            text
        };
        let texts: String = files::entries(&examples)
            .unwrap()
            .iter()
            .map(|file| copy(file))
            .collect();
        let env = EnvFile::parse("GRAFANA_PASSWORD=a\nPROMETHEUS_KEY=b\n").unwrap();
        let extras = load(&paths, &env).unwrap();
        refuse_missing(&extras).unwrap();
        let names: Vec<_> = extras.iter().map(|extra| extra.service.name()).collect();
        assert_eq!(names, ["grafana", "prometheus", "relay"]);
        assert!(extras.iter().all(|extra| extra.warnings.is_empty()));
        // What one file says of another.
        for (there, here) in [
            ("url: http://prometheus:9090", "--web.user-assets=/metrics"),
            (
                "path: /etc/grafana/litellm-units}",
                ":/etc/grafana/litellm-units/grafana-dashboard.json:",
            ),
            ("targets: [\"relay:24157\"]", ":24157 {"),
        ] {
            assert!(texts.contains(there) && texts.contains(here), "{there}");
        }
    }

    #[test]
    fn a_missing_mount_is_named() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::in_test(root.path());
        std::fs::create_dir(paths.extra()).unwrap();
        let file = paths.extra().join("filter.container");
        let text = "[Container]\nImage=registry.example.com/filter:1.2\nVolume=./rules:/rules\n";
        std::fs::write(&file, text).unwrap();
        let extras = load(&paths, &EnvFile::parse("").unwrap()).unwrap();
        let rules = paths.extra().join("rules");
        assert_eq!(
            refuse_missing(&extras).unwrap_err().to_string(),
            format!(
                "{}, line 3: {} does not exist",
                file.display(),
                rules.display()
            )
        );
        std::fs::create_dir(rules).unwrap();
        refuse_missing(&extras).unwrap();
    }

    #[test]
    fn rights_are_warned_about() {
        let extra = read(
            "[Container]\nImage=registry.example.com/filter:1.2\nAddCapability=SYS_ADMIN\n\
             PodmanArgs=--privileged\nPodmanArgs=--memory=1g\nVolume=/:/host:ro\n",
        );
        assert_eq!(
            extra.unwrap().warnings,
            [
                "line 3: AddCapability=SYS_ADMIN gives the container rights that can reach the host",
                "line 4: PodmanArgs=--privileged is passed on to Podman as it is",
                "line 5: PodmanArgs=--memory=1g is passed on to Podman as it is",
                "line 6: the container can read every secret of /opt/litellm-server/.env",
            ]
        );
    }

    #[test]
    fn names() {
        for (name, problem) in [
            ("filter-2", None),
            ("litellm", Some("is a name of the stack itself")),
            ("litellm-2", Some("is a name of the stack itself")),
            ("redis", Some("is a name of the stack itself")),
            ("images", Some("is a name of the stack itself")),
            (
                "Filter",
                Some("is not a name of at most 40 lowercase letters, digits and inner hyphens"),
            ),
            (
                "-a",
                Some("is not a name of at most 40 lowercase letters, digits and inner hyphens"),
            ),
        ] {
            assert_eq!(Service::extra(name).err(), problem, "{name}");
        }
        let service = Service::extra("filter").unwrap();
        assert_eq!(
            Service::extra_of("litellm-extra-filter.service"),
            Some(service)
        );
        assert_eq!(Service::extra_of("litellm-2.service"), None);
        assert_eq!(service.container(), "litellm-extra-filter");
    }
}
