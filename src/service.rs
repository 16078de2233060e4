//! The services of a deployment, their instances, and what each is called.

use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

/// One of the containers that can get variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
    /// The database migration, which runs before the gateway.
    Migrate,
    /// The gateway.
    Litellm,
    /// Caddy with TLS in front of the gateway, which is no container.
    #[serde(skip)]
    Entrance,
    /// A unit of the operator's own, of a file in `extra.d/`.
    #[serde(skip)]
    Extra(&'static ExtraNames),
}

/// What a unit of the operator's own is called.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtraNames {
    name: String,
    unit: String,
    images_unit: String,
    quadlet: String,
}

/// The begin of the names of such units and their containers.
const EXTRA: &str = "litellm-extra-";

/// Every such unit that this process has met. They are few, and live as long as the process.
static EXTRAS: Mutex<Vec<&'static ExtraNames>> = Mutex::new(Vec::new());

impl Service {
    /// Every service of the stack itself, in start order.
    pub const ALL: [Self; 4] = [Self::Postgres, Self::Redis, Self::Migrate, Self::Litellm];

    /// The unit of the operator's own with this name.
    ///
    /// # Errors
    /// What is wrong with the name, as the end of a sentence.
    pub fn extra(name: &str) -> Result<Self, &'static str> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty()
            || name.len() > 40
            || !name.chars().all(is_plain)
            || name.starts_with('-')
            || name.ends_with('-')
        {
            return Err("is not a name of at most 40 lowercase letters, digits and inner hyphens");
        }
        let is_taken = Self::ALL.iter().any(|service| service.name() == name);
        if is_taken
            || name.starts_with("litellm")
            || ["entrance", "images", "network"].contains(&name)
        {
            return Err("is a name of the stack itself");
        }
        let mut extras = EXTRAS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = extras.iter().find(|known| known.name == name) {
            return Ok(Self::Extra(known));
        }
        let names: &'static ExtraNames = Box::leak(Box::new(ExtraNames {
            name: name.to_owned(),
            unit: format!("{EXTRA}{name}.service"),
            images_unit: format!("litellm-images@{name}.service"),
            quadlet: format!("{EXTRA}{name}.container"),
        }));
        extras.push(names);
        Ok(Self::Extra(names))
    }

    /// The unit of the operator's own with this systemd unit or Quadlet file.
    #[must_use]
    pub fn extra_of(file: &str) -> Option<Self> {
        let name = file.strip_prefix(EXTRA)?;
        let name = name
            .strip_suffix(".service")
            .or(name.strip_suffix(".container"))?;
        Self::extra(name).ok()
    }

    /// The service of this unit that not every deployment has.
    #[must_use]
    pub fn optional(unit: &str) -> Option<Self> {
        if unit == Self::Entrance.unit() {
            return Some(Self::Entrance);
        }
        Self::extra_of(unit)
    }

    /// Whether it is a unit of the operator's own.
    #[must_use]
    pub fn is_extra(self) -> bool {
        matches!(self, Self::Extra(_))
    }

    /// The word for it on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Extra(names) => &names.name,
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Migrate => "migrate",
            Self::Litellm => "litellm",
            Self::Entrance => "entrance",
        }
    }

    /// The name of its container, and of its unit without the suffix.
    #[must_use]
    pub fn container(self) -> &'static str {
        match self {
            Self::Postgres => "litellm-postgres",
            Self::Redis => "litellm-redis",
            Self::Migrate => "litellm-migrate",
            Self::Litellm => "litellm",
            Self::Entrance => "litellm-entrance",
            Self::Extra(names) => names.unit.trim_end_matches(".service"),
        }
    }

    /// Whether one of the services has a container of this name.
    #[must_use]
    pub fn has_container(name: &str) -> bool {
        Self::ALL.iter().any(|service| service.container() == name) || name.starts_with(EXTRA)
    }

    /// What names its image.
    #[must_use]
    pub fn image_variable(self) -> &'static str {
        match self {
            Self::Extra(_) | Self::Entrance => "Image=",
            Self::Postgres => "POSTGRES_IMAGE",
            Self::Redis => "REDIS_IMAGE",
            Self::Migrate | Self::Litellm => "LITELLM_IMAGE",
        }
    }

    /// The unit that pulls its image.
    #[must_use]
    pub const fn images_unit(self) -> &'static str {
        match self {
            Self::Extra(names) => names.images_unit.as_str(),
            Self::Postgres => "litellm-images@postgres.service",
            Self::Redis => "litellm-images@redis.service",
            Self::Migrate | Self::Litellm | Self::Entrance => "litellm-images@litellm.service",
        }
    }

    /// The name of its unit.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Postgres => "litellm-postgres.service",
            Self::Redis => "litellm-redis.service",
            Self::Migrate => "litellm-migrate.service",
            Self::Litellm => "litellm.service",
            Self::Entrance => "litellm-entrance.service",
            Self::Extra(names) => names.unit.as_str(),
        }
    }
}

/// The names of the gateway's further instances, with a suffix.
macro_rules! further {
    ($suffix:literal) => {
        [
            concat!("litellm-2", $suffix),
            concat!("litellm-3", $suffix),
            concat!("litellm-4", $suffix),
            concat!("litellm-5", $suffix),
            concat!("litellm-6", $suffix),
            concat!("litellm-7", $suffix),
            concat!("litellm-8", $suffix),
        ]
    };
}

const CONTAINERS: [&str; 7] = further!("");
const UNITS: [&str; 7] = further!(".service");
const QUADLETS: [&str; 7] = further!(".container");

/// A container with a unit of its own: that of a service, or a further gateway at the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    service: Service,
    /// 1 for the first one, which has the names of its service.
    number: usize,
}

impl Instance {
    /// The most gateways at one address. Each has 10 connections to the database, as the standby has, and PostgreSQL
    /// takes 100.
    pub const MOST: usize = CONTAINERS.len() + 1;

    /// Every instance of the stack itself, in start order.
    pub fn all() -> impl Iterator<Item = Self> {
        let services = Service::ALL.into_iter().map(Self::from);
        services.chain(Self::further(Self::MOST))
    }

    /// Every gateway.
    pub fn gateways() -> impl Iterator<Item = Self> {
        std::iter::once(Self::from(Service::Litellm)).chain(Self::further(Self::MOST))
    }

    /// The gateways beside the first one, of this number in all.
    pub fn further(gateways: usize) -> impl Iterator<Item = Self> {
        (2..=gateways.min(Self::MOST)).map(|number| Self {
            service: Service::Litellm,
            number,
        })
    }

    /// What runs in it.
    #[must_use]
    pub fn service(self) -> Service {
        self.service
    }

    /// 1 for the first gateway, and for every other service.
    #[must_use]
    pub fn number(self) -> usize {
        self.number
    }

    /// The word for it in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.further_name(&CONTAINERS)
            .unwrap_or(self.service.name())
    }

    /// The name of its container, and of its unit without the suffix.
    #[must_use]
    pub fn container(self) -> &'static str {
        self.further_name(&CONTAINERS)
            .unwrap_or(self.service.container())
    }

    /// The name of its unit.
    #[must_use]
    pub fn unit(self) -> &'static str {
        self.further_name(&UNITS).unwrap_or(self.service.unit())
    }

    /// The name of its Quadlet file.
    #[must_use]
    pub fn quadlet(self) -> &'static str {
        self.further_name(&QUADLETS).unwrap_or(match self.service {
            Service::Postgres => "litellm-postgres.container",
            Service::Redis => "litellm-redis.container",
            Service::Migrate => "litellm-migrate.container",
            Service::Litellm => "litellm.container",
            // It has none: this is its unit.
            Service::Entrance => Service::Entrance.unit(),
            Service::Extra(names) => &names.quadlet,
        })
    }

    fn further_name(self, names: &[&'static str; 7]) -> Option<&'static str> {
        names.get(self.number.checked_sub(2)?).copied()
    }
}

impl From<Service> for Instance {
    fn from(service: Service) -> Self {
        Self { service, number: 1 }
    }
}

/// Completes the services that every deployment has, and takes names of others: which exist is known on the host.
#[derive(Clone)]
pub struct ServiceParser;

impl clap::builder::ValueParserFactory for Service {
    type Parser = ServiceParser;

    fn value_parser() -> ServiceParser {
        ServiceParser
    }
}

impl clap::builder::TypedValueParser for ServiceParser {
    type Value = Service;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Service, clap::Error> {
        let parse = |name: &str| {
            let mut all = Service::ALL.into_iter().chain([Service::Entrance]);
            all.find(|service| service.name() == name)
                .map_or_else(|| Service::extra(name), Ok)
        };
        clap::builder::TypedValueParser::parse_ref(&parse, command, argument, value)
    }

    fn possible_values(
        &self,
    ) -> Option<Box<dyn Iterator<Item = clap::builder::PossibleValue> + '_>> {
        let names = Service::ALL.into_iter().map(Service::name);
        Some(Box::new(names.map(clap::builder::PossibleValue::new)))
    }
}
