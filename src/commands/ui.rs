//! `ui`: the login and the public address of the web interface.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use anyhow::Context;
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use super::secrets;
use crate::cli::secrets::Ui;
use crate::deployment::entrance::Entrance;
use crate::deployment::sealed::SecretValue;
use crate::deployment::settings::{Settings, load_env};
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::litellm::{Client, ui};
use crate::output::{self, say, warn};
use crate::random::{kernel_random, password};

const SHORTEST: usize = 8;
const CONTROL_C: u8 = 3;

pub(crate) async fn run(host: &Host, arguments: &Ui) -> Result<Exit> {
    let path = host.paths.env_file();
    let settings = Settings::load(&path)?;
    let env = load_env(&path)?;
    let mut values: Vec<(&str, SecretString)> = Vec::new();
    announce(&settings, arguments)?;

    if let Some(username) = &arguments.username {
        if username.trim().is_empty() || username.chars().any(char::is_control) {
            return Err(
                Failure::new("the user name is empty, or holds a control character").into(),
            );
        }
        values.push(("UI_USERNAME", username.as_str().into()));
    } else if settings.ui_username().is_none() {
        values.push(("UI_USERNAME", ui::DEFAULT_USERNAME.into()));
    }

    let keeps = settings.ui_password().is_some()
        && (arguments.username.is_some() || arguments.base_url.is_some());
    let new = if arguments.generate {
        None
    } else if arguments.password_stdin {
        Some(checked(from_stdin()?)?)
    } else if keeps {
        settings.ui_password().map(SecretValue::open).transpose()?
    } else if std::io::stdin().is_terminal() {
        let first = prompt("New password for the web interface (empty: a random one): ")?;
        if first.expose_secret().is_empty() {
            None
        } else {
            let first = checked(first)?;
            if prompt("Repeat the password: ")?.expose_secret() != first.expose_secret() {
                return Err(Failure::new("the two passwords differ; nothing was changed").into());
            }
            Some(first)
        }
    } else {
        None
    };
    let generated = new.is_none();
    let new = match new {
        Some(new) => new,
        None => password(&mut kernel_random)?.into(),
    };
    values.push(("UI_PASSWORD", new.clone()));

    let public = match &arguments.base_url {
        Some(text) => Some(base_url(text, &settings.root_path)?),
        None => env
            .get("PROXY_BASE_URL")
            .filter(|text| text.starts_with("https:"))
            .and_then(|text| Url::parse(text).ok()),
    };
    if let Some(public) = &public {
        let text = public.as_str().trim_end_matches('/');
        values.push(("PROXY_BASE_URL", text.into()));
    }
    let entrance = settings.entrance.as_ref().map(Entrance::url);
    let public = public.or_else(|| Url::parse(&entrance?).ok());
    secrets::replace(
        host,
        "change of the web interface",
        &values,
        arguments.timeout,
    )
    .await?;

    let client = Client::local(&host.paths, Duration::from_secs(30))?;
    let root = &settings.root_path;
    ui::check_pages(&client, root, public.as_ref()).await?;
    if ui::login(&client, username(&settings, arguments), &new).await? == Some(false) {
        return Err(
            Failure::new("the web interface does not accept the login of .env")
                .hint("see the log of the gateway: `litellm-units logs litellm`")
                .into(),
        );
    }
    let address = public.map_or_else(
        || format!("{}{root}/ui", client.address()),
        |public| format!("{}{root}/ui", public.as_str().trim_end_matches('/')),
    );
    say(&format!(
        "{address} answers; log in as {}",
        username(&settings, arguments)
    ));
    if generated {
        output::line(new.expose_secret())?;
    }
    Ok(Exit::Success)
}

/// Says what a command without options is about to replace, and refuses that where nobody can be asked.
fn announce(settings: &Settings, arguments: &Ui) -> Result<()> {
    let is_chosen = arguments.generate
        || arguments.password_stdin
        || arguments.username.is_some()
        || arguments.base_url.is_some();
    if is_chosen || settings.ui_password().is_none() {
        return Ok(());
    }
    let login = settings.ui_username().unwrap_or(ui::DEFAULT_USERNAME);
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(format!(
            "the web interface has the login {login}, and there is no terminal to ask whether to replace its password"
        ))
        .hint("replace it with a random one: `litellm-units ui --generate`")
        .into());
    }
    say(&format!(
        "this replaces the password of {login}, ends the sessions of the web interface and restarts the gateway; Ctrl-C changes nothing"
    ));
    Ok(())
}

fn username<'a>(settings: &'a Settings, arguments: &'a Ui) -> &'a str {
    arguments
        .username
        .as_deref()
        .or(settings.ui_username())
        .unwrap_or(ui::DEFAULT_USERNAME)
}

fn base_url(text: &str, root: &str) -> Result<Url> {
    let wrong = |problem: &str| {
        Failure::new(format!("{text} {problem}")).hint(
            "use the address of the reverse proxy in a browser, such as https://llm.example.com",
        )
    };
    let url = Url::parse(text).map_err(|error| wrong(&format!("is not a URL: {error}")))?;
    if url.scheme() != "https" {
        return Err(wrong(
            "is not https: the login and every key would cross the network unencrypted",
        )
        .into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Failure::new("the address holds a user name or a password").into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has a query or a fragment").into());
    }
    if url.path() != "/" {
        let hint = if url.path().trim_end_matches('/') == root {
            "leave out the path: LiteLLM adds SERVER_ROOT_PATH itself".to_owned()
        } else {
            format!(
                "leave out the path, set SERVER_ROOT_PATH={} in .env, and have the proxy pass on the whole path",
                url.path().trim_end_matches('/')
            )
        };
        return Err(Failure::new(format!("{text} has a path")).hint(hint).into());
    }
    Ok(url)
}

fn checked(password: SecretString) -> Result<SecretString> {
    let text = password.expose_secret();
    if text.chars().any(char::is_control) {
        return Err(Failure::new("the password holds a control character").into());
    }
    if text.chars().count() < SHORTEST {
        return Err(
            Failure::new(format!("the password has fewer than {SHORTEST} characters"))
                .hint("choose a longer one, or generate one with `--generate`")
                .into(),
        );
    }
    if text.chars().count() < 12 {
        warn("the password is short: it protects every key");
    }
    Ok(password)
}

fn from_stdin() -> Result<SecretString> {
    let mut text = String::new();
    std::io::stdin()
        .take(4096)
        .read_to_string(&mut text)
        .context("can't read the password from stdin")?;
    Ok(text.lines().next().unwrap_or_default().into())
}

/// Asks on the terminal, without echo.
fn prompt(question: &str) -> Result<SecretString> {
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).context("can't ask for a password")?;
    let mut quiet = before.clone();
    quiet.local_flags.remove(LocalFlags::ECHO);
    // Ctrl-C would end the program with the echo off, so it ends the line instead.
    quiet.local_flags.remove(LocalFlags::ISIG);
    quiet.control_chars[SpecialCharacterIndices::VEOL as usize] = CONTROL_C;
    eprint!("{question}");
    std::io::stderr().flush()?;
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &quiet).context("can't turn the echo off")?;
    let answer = read_line();
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &before).context("can't turn the echo on")?;
    eprintln!();
    let line = answer?;
    if line.contains(&CONTROL_C) {
        return Err(Failure::interrupted("interrupted; nothing was changed").into());
    }
    let line =
        String::from_utf8(line).map_err(|_| Failure::new("the password is not valid UTF-8"))?;
    Ok(line.into())
}

fn read_line() -> Result<Vec<u8>> {
    let mut line = Vec::new();
    for byte in std::io::stdin().lock().bytes() {
        match byte? {
            b'\n' => break,
            CONTROL_C => {
                line.push(CONTROL_C);
                break;
            }
            byte => line.push(byte),
        }
    }
    Ok(line)
}
