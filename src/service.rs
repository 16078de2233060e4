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
    Extra(&'static Names),
}

/// What a service, or an instance of it, is called.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Names {
    name: &'static str,
    container: &'static str,
    unit: &'static str,
    quadlet: &'static str,
    images_unit: &'static str,
}

macro_rules! names {
    ($name:literal, $container:literal, $image:literal) => {
        Names {
            name: $name,
            container: $container,
            unit: concat!($container, ".service"),
            quadlet: concat!($container, ".container"),
            images_unit: concat!("litellm-images@", $image, ".service"),
        }
    };
}

const ENTRANCE: Names = Names {
    // It has none: this is its unit.
    quadlet: "litellm-entrance.service",
    ..names!("entrance", "litellm-entrance", "litellm")
};

/// Those of the further gateways.
static FURTHER: [Names; 7] = [
    names!("litellm-2", "litellm-2", "litellm"),
    names!("litellm-3", "litellm-3", "litellm"),
    names!("litellm-4", "litellm-4", "litellm"),
    names!("litellm-5", "litellm-5", "litellm"),
    names!("litellm-6", "litellm-6", "litellm"),
    names!("litellm-7", "litellm-7", "litellm"),
    names!("litellm-8", "litellm-8", "litellm"),
];

/// The begin of the names of the operator's own units and their containers.
const EXTRA: &str = "litellm-extra-";

/// Every such unit that this process has met. They are few, and live as long as the process.
static EXTRAS: Mutex<Vec<&'static Names>> = Mutex::new(Vec::new());

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
        let container = format!("{EXTRA}{name}");
        let names: &'static Names = Box::leak(Box::new(Names {
            name: name.to_owned().leak(),
            unit: format!("{container}.service").leak(),
            quadlet: format!("{container}.container").leak(),
            images_unit: format!("litellm-images@{name}.service").leak(),
            container: container.leak(),
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

    const fn names(self) -> &'static Names {
        match self {
            Self::Postgres => &names!("postgres", "litellm-postgres", "postgres"),
            Self::Redis => &names!("redis", "litellm-redis", "redis"),
            Self::Migrate => &names!("migrate", "litellm-migrate", "litellm"),
            Self::Litellm => &names!("litellm", "litellm", "litellm"),
            Self::Entrance => &ENTRANCE,
            Self::Extra(names) => names,
        }
    }

    /// The word for it on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.names().name
    }

    /// The name of its container, and of its unit without the suffix.
    #[must_use]
    pub const fn container(self) -> &'static str {
        self.names().container
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
        self.names().images_unit
    }

    /// The name of its unit.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        self.names().unit
    }
}

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
    pub const MOST: usize = FURTHER.len() + 1;

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

    fn names(self) -> &'static Names {
        let further = self.number.checked_sub(2);
        let names = further.and_then(|index| FURTHER.get(index));
        names.unwrap_or(self.service.names())
    }

    /// The word for it in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.names().name
    }

    /// The name of its container, and of its unit without the suffix.
    #[must_use]
    pub fn container(self) -> &'static str {
        self.names().container
    }

    /// The name of its unit.
    #[must_use]
    pub fn unit(self) -> &'static str {
        self.names().unit
    }

    /// The name of its Quadlet file; of the entrance, which has none, that of its unit.
    #[must_use]
    pub fn quadlet(self) -> &'static str {
        self.names().quadlet
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
