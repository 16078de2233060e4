//! The services of a deployment, their instances, and what each is called.

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
}

impl Service {
    /// Every service, in start order.
    pub const ALL: [Self; 4] = [Self::Postgres, Self::Redis, Self::Migrate, Self::Litellm];

    /// The word for it on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Migrate => "migrate",
            Self::Litellm => "litellm",
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
        }
    }

    /// Whether one of the services has a container of this name.
    #[must_use]
    pub fn has_container(name: &str) -> bool {
        Self::ALL.iter().any(|service| service.container() == name)
    }

    /// The variable that names its image.
    #[must_use]
    pub fn image_variable(self) -> &'static str {
        match self {
            Self::Postgres => "POSTGRES_IMAGE",
            Self::Redis => "REDIS_IMAGE",
            Self::Migrate | Self::Litellm => "LITELLM_IMAGE",
        }
    }

    /// The unit that pulls its image.
    #[must_use]
    pub const fn images_unit(self) -> &'static str {
        match self {
            Self::Postgres => "litellm-images@postgres.service",
            Self::Redis => "litellm-images@redis.service",
            Self::Migrate | Self::Litellm => "litellm-images@litellm.service",
        }
    }

    /// The name of its unit.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Postgres => "litellm-postgres.service",
            Self::Redis => "litellm-redis.service",
            Self::Migrate => "litellm-migrate.service",
            Self::Litellm => "litellm.service",
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

    /// Every instance, in start order.
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

// Not derived: that would explain each name, and so make every help text a long one.
impl clap::ValueEnum for Service {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(self.name().into())
    }
}
