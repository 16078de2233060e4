//! `status --watch`: the live screen on a terminal, otherwise a repeated table.

use std::collections::{HashMap, VecDeque};
use std::io::IsTerminal;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use ratatui::DefaultTerminal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, MissedTickBehavior};

use super::screen::{self, Lines, Mode, Rate, View};
use super::table;
use crate::cli;
use crate::deployment::extra;
use crate::error::{Exit, Result};
use crate::host::journal::{self, Entry, Query};
use crate::host::paths::Scope;
use crate::host::{self, Host};
use crate::litellm::Client;
use crate::litellm::health::GatewayHealth;
use crate::litellm::log;
use crate::litellm::metrics::Requests;
use crate::operations::stack::report::{Services, TIMEOUT, gather};
use crate::output;
use crate::service::{Instance, Service};

const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Interval of requests to a gateway without metrics. It gets metrics only by a restart, and each request
/// is a line in its log.
const METRICS_RETRY: Duration = Duration::from_secs(600);
/// Interval of requests to a ready gateway, since each one is a line in its log. The result of Podman's
/// health check is read from a file at every update.
const READY_AGAIN: Duration = Duration::from_secs(5);
/// Lines of the journal that are read before following it.
const FIRST_LINES: u32 = 400;
/// Lines of an action's output on the screen.
const MESSAGES: usize = 4;
const PAGE: isize = 20;

/// Runs until the operator quits.
pub(crate) async fn run(host: &Host, arguments: &cli::Status) -> Result<Exit> {
    let terminal = std::io::stdout().is_terminal()
        && std::env::var_os("TERM").is_some_and(|term| term != "dumb");
    if arguments.json || !terminal {
        return plain(host, arguments).await;
    }
    // Before the screen opens, so that this error is visible.
    host.systemd().await?;
    let mut screen = Screen::open()?;
    let client = Client::local(&host.paths, TIMEOUT)?;
    Watch::new(host, &client, arguments.interval)
        .run(&mut screen.terminal)
        .await
}

/// Like `docker stats`: repeats until Ctrl-C.
async fn plain(host: &Host, arguments: &cli::Status) -> Result<Exit> {
    let mut tick = tokio::time::interval(arguments.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let report = gather(host).await?;
        if arguments.json {
            output::line(&serde_json::to_string(&report)?)?;
        } else {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
            output::text(&format!("--- {now}\n{}", table(&report)))?;
        }
    }
}

/// The terminal, restored on every way out; on a panic by the hook that `try_init` sets.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn open() -> Result<Self> {
        let terminal = ratatui::try_init().context("can't use the terminal")?;
        Ok(Self { terminal })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.terminal.show_cursor();
        ratatui::restore();
    }
}

enum News {
    Services(Box<Result<Services>>),
    Health(GatewayHealth),
    Requests(Requests),
    /// Following the journal of all services ended.
    LogEnded(Result<()>),
    Ended(String),
}

struct Watch<'a> {
    host: &'a Host,
    client: &'a Client,
    interval: Duration,
    view: View,
    work: FuturesUnordered<LocalBoxFuture<'a, News>>,
    /// Pending requests, so that slow answers do not pile up.
    asking_services: Option<Instant>,
    asking_health: bool,
    asking_requests: bool,
    next_health: Instant,
    next_requests: Instant,
    counts: VecDeque<(Instant, f64)>,
    cpu: HashMap<&'static str, (Instant, f64)>,
    said: (UnboundedSender<String>, UnboundedReceiver<String>),
    entries: UnboundedReceiver<Entry>,
    log: Option<Follow<'a>>,
}

struct Follow<'a> {
    reader: LocalBoxFuture<'a, Result<()>>,
    entries: UnboundedReceiver<Entry>,
    ended: bool,
}

impl<'a> Watch<'a> {
    fn new(host: &'a Host, client: &'a Client, interval: Duration) -> Self {
        let colour =
            anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never;
        let work = FuturesUnordered::new();
        let units =
            { extra::instances(&host.paths).map(Instance::unit) }.chain([Service::Entrance.unit()]);
        let (reader, entries) = follow(host.scope(), units.collect());
        work.push(Box::pin(async { News::LogEnded(reader.await) }) as LocalBoxFuture<'a, News>);
        Self {
            host,
            client,
            interval,
            view: View::new(colour),
            work,
            asking_services: None,
            asking_health: false,
            asking_requests: false,
            next_health: Instant::now(),
            next_requests: Instant::now(),
            counts: VecDeque::new(),
            cpu: HashMap::new(),
            said: unbounded_channel(),
            entries,
            log: None,
        }
    }

    async fn run(&mut self, terminal: &mut DefaultTerminal) -> Result<Exit> {
        let mut keys = EventStream::new();
        let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
        let mut hangup = signal(SignalKind::hangup()).context("can't listen for signals")?;
        let mut tick = tokio::time::interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            terminal
                .draw(|frame| screen::draw(frame, &self.view))
                .context("can't write to the terminal")?;
            tokio::select! {
                biased;
                _ = terminate.recv() => return Ok(Exit::Terminated),
                _ = hangup.recv() => return Ok(Exit::Terminated),
                _ = interrupt.recv() => return Ok(Exit::Interrupted),
                event = keys.next() => {
                    // The terminal is closed.
                    let Some(event) = event else { return Ok(Exit::Terminated) };
                    if let Event::Key(key) = event.context("can't read the keyboard")?
                        && key.kind == KeyEventKind::Press
                        && let Some(exit) = self.key(key)
                    {
                        return Ok(exit);
                    }
                }
                _ = tick.tick() => self.ask(),
                Some(news) = self.work.next() => self.take(news),
                Some(words) = self.said.1.recv() => self.say(&words),
                Some(entry) = self.entries.recv() => {
                    add_unless_probe(&mut self.view.overview, &entry);
                    while let Ok(entry) = self.entries.try_recv() {
                        add_unless_probe(&mut self.view.overview, &entry);
                    }
                }
                Some(entry) = next_of(self.log.as_mut()) => {
                    if let Mode::Log(lines) = &mut self.view.mode {
                        match entry {
                            Ok(entry) => {
                                add(lines, &entry);
                                while let Some(Ok(entry)) =
                                    self.log.as_mut().map(|log| log.entries.try_recv())
                                {
                                    add(lines, &entry);
                                }
                            }
                            Err(problem) => lines.problem = Some(problem),
                        }
                    }
                }
            }
        }
    }

    /// Asks again those that have answered.
    fn ask(&mut self) {
        let (host, client) = (self.host, self.client);
        match self.asking_services {
            None => {
                self.asking_services = Some(Instant::now());
                self.work.push(Box::pin(async {
                    News::Services(Box::new(Services::gather(host).await))
                }));
            }
            Some(since) if since.elapsed() > TIMEOUT.max(self.interval * 2) => {
                self.view.problem = Some(screen::overdue(since.elapsed()));
            }
            Some(_) => {}
        }
        if !self.asking_health && Instant::now() >= self.next_health {
            self.asking_health = true;
            self.work
                .push(Box::pin(async { News::Health(client.health().await) }));
        }
        if !self.asking_requests && Instant::now() >= self.next_requests {
            self.asking_requests = true;
            self.work
                .push(Box::pin(async { News::Requests(client.requests().await) }));
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Services(answer) => {
                self.asking_services = None;
                match *answer {
                    Ok(services) => {
                        self.measure_cpu(&services);
                        self.view.problem = services.problem();
                        self.view.services = Some(services);
                        // The chosen service may be gone.
                        self.view.choose(0);
                    }
                    Err(error) => self.view.problem = Some(format!("{error:#}")),
                }
            }
            News::Health(health) => {
                self.asking_health = false;
                if health.is_ready() {
                    self.next_health = Instant::now() + READY_AGAIN;
                } else {
                    // After its start, it may have metrics.
                    self.next_requests = Instant::now();
                }
                self.view.health = Some(health);
            }
            News::Requests(requests) => {
                self.asking_requests = false;
                self.measure_requests(requests);
            }
            News::LogEnded(result) => {
                self.view.overview.problem = Some(why_ended(result));
            }
            News::Ended(words) => self.say(&words),
        }
    }

    fn measure_cpu(&mut self, services: &Services) {
        let now = Instant::now();
        for service in &services.reports {
            let Some(used) = service.cpu_seconds else {
                self.cpu.remove(service.unit);
                self.view.cpu.remove(service.unit);
                continue;
            };
            match self.cpu.insert(service.unit, (now, used)) {
                Some((then, before)) if used >= before && now > then => {
                    let percent = (used - before) / (now - then).as_secs_f64() * 100.0;
                    self.view.cpu.insert(service.unit, percent);
                }
                _ => {
                    self.view.cpu.remove(service.unit);
                }
            }
        }
    }

    fn measure_requests(&mut self, requests: Requests) {
        let now = Instant::now();
        let gateways = self.view.gateways();
        self.view.rate = match requests {
            // Each answer is of one of them, whose counter is its own.
            Requests::Count(_) if gateways > 1 => {
                self.counts.clear();
                Rate::Off
            }
            Requests::Count(count) => {
                // The gateway restarted.
                if self
                    .counts
                    .back()
                    .is_some_and(|(_, before)| *before > count)
                {
                    self.counts.clear();
                }
                self.counts.push_back((now, count));
                while self.counts.len() > 2 && now - self.counts[1].0 > RATE_WINDOW {
                    self.counts.pop_front();
                }
                match self.counts.front() {
                    Some((then, before)) if now > *then => {
                        Rate::PerSecond((count - before) / (now - *then).as_secs_f64())
                    }
                    _ => Rate::Unknown,
                }
            }
            Requests::Off | Requests::Locked => {
                self.next_requests = now + METRICS_RETRY;
                self.counts.clear();
                Rate::Off
            }
            Requests::Unknown => {
                self.counts.clear();
                Rate::Unknown
            }
        };
    }

    fn say(&mut self, words: &str) {
        for line in words.lines() {
            self.view.messages.push_back(line.to_owned());
        }
        while self.view.messages.len() > MESSAGES {
            self.view.messages.pop_front();
        }
    }

    /// Returns the exit status if the key quits.
    fn key(&mut self, key: KeyEvent) -> Option<Exit> {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Some(Exit::Interrupted);
        }
        match &mut self.view.mode {
            Mode::Overview => match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Some(Exit::Success),
                KeyCode::Char('j') | KeyCode::Down => self.choose(1),
                KeyCode::Char('k') | KeyCode::Up => self.choose(-1),
                KeyCode::Char('r') => self.view.mode = Mode::Confirm,
                KeyCode::Char('l') | KeyCode::Enter => {
                    let unit = self.view.chosen.unit();
                    let (reader, entries) = follow(self.host.scope(), vec![unit]);
                    self.log = Some(Follow {
                        reader,
                        entries,
                        ended: false,
                    });
                    self.view.mode = Mode::Log(Lines::log());
                }
                _ => {}
            },
            Mode::Confirm => match key.code {
                KeyCode::Char('y' | 'Y') => {
                    self.view.mode = Mode::Overview;
                    self.restart(self.view.chosen);
                }
                KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc => self.view.mode = Mode::Overview,
                _ => {}
            },
            Mode::Log(lines) => match key.code {
                KeyCode::Char('q' | 'l') | KeyCode::Esc => {
                    // Also ends its journalctl.
                    self.log = None;
                    self.view.mode = Mode::Overview;
                }
                KeyCode::Char('j') | KeyCode::Down => lines.scroll(-1),
                KeyCode::Char('k') | KeyCode::Up => lines.scroll(1),
                KeyCode::PageDown | KeyCode::Char(' ') => lines.scroll(-PAGE),
                KeyCode::PageUp => lines.scroll(PAGE),
                KeyCode::Home | KeyCode::Char('g') => lines.scroll_to_start(),
                KeyCode::End | KeyCode::Char('G') => lines.scroll_to_end(),
                _ => {}
            },
        }
        None
    }

    fn choose(&mut self, rows: isize) {
        self.view.messages.clear();
        self.view.choose(rows);
    }

    /// Runs `litellm-units restart SERVICE`, whose output goes to the screen.
    fn restart(&mut self, service: Service) {
        self.view.messages.clear();
        let (host, said) = (self.host, self.said.0.clone());
        self.work.push(Box::pin(async move {
            News::Ended(match restart(host, service, &said).await {
                Ok(()) => String::new(),
                Err(error) => format!("error: {error:#}"),
            })
        }));
    }
}

async fn restart(host: &Host, service: Service, said: &UnboundedSender<String>) -> Result<()> {
    let mut child = Command::new(host::program()?)
        .arg(match host.scope() {
            Scope::System => "--system",
            Scope::User => "--user",
        })
        .arg("--litellm-dir")
        .arg(&host.paths.deployment)
        .args(["restart", service.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("can't run litellm-units restart")?;
    let stderr = child.stderr.take().context("it has no output")?;
    let mut lines = BufReader::new(stderr).lines();
    while let Some(line) = lines.next_line().await.context("can't read its output")? {
        if said.send(line).is_err() {
            break;
        }
    }
    child.wait().await.context("can't wait for it")?;
    Ok(())
}

/// Starts when the future is polled.
fn follow<'a>(
    scope: Scope,
    units: Vec<&'static str>,
) -> (LocalBoxFuture<'a, Result<()>>, UnboundedReceiver<Entry>) {
    let (sender, entries) = unbounded_channel();
    let reader = async move {
        let query = Query {
            scope,
            remote: None,
            units,
            follow: true,
            tail: Some(FIRST_LINES),
            since: None,
            until: None,
        };
        journal::read(&query, |entry| {
            // Without a receiver, this future is about to be dropped.
            let _ = sender.send(entry);
            Ok(())
        })
        .await
    };
    (Box::pin(reader), entries)
}

/// The next message of a followed log, or why it ended.
async fn next_of(log: Option<&mut Follow<'_>>) -> Option<Result<Entry, String>> {
    let log = log?;
    if log.ended {
        return None;
    }
    tokio::select! {
        biased;
        Some(entry) = log.entries.recv() => Some(Ok(entry)),
        result = &mut log.reader => {
            log.ended = true;
            Some(Err(why_ended(result)))
        }
    }
}

fn why_ended(result: Result<()>) -> String {
    match result {
        Ok(()) => "journalctl ended".into(),
        Err(error) => format!("{error:#}"),
    }
}

/// Leaves out the gateway's access log of health checks.
fn add_unless_probe(lines: &mut Lines, entry: &Entry) {
    let is_probe = |line: &str| {
        log::Request::of(line).is_some_and(|request| request.is_probe && request.status == 200)
    };
    if !entry.message.lines().all(is_probe) {
        add(lines, entry);
    }
}

fn add(lines: &mut Lines, entry: &Entry) {
    let instance = Instance::all().find(|instance| instance.unit() == entry.unit);
    let service = instance.map(Instance::service);
    if let Some(service) = service.or_else(|| Service::optional(&entry.unit)) {
        lines.push(service, &log::readable(&entry.message));
    }
}
