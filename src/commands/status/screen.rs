//! The live screen: pure, from a [`View`] to cells.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::host::container_state;
use crate::host::systemd::ActiveState;
use crate::litellm::health::GatewayHealth;
use crate::operations::stack::report::{ServiceReport, Services, State};
use crate::output::{duration, printable};
use crate::service::{Instance, Service};

const OVERVIEW_LINES: usize = 200;
const LOG_LINES: usize = 5000;

#[derive(Debug)]
pub(crate) struct View {
    /// `None` before the first answer.
    pub(crate) services: Option<Services>,
    /// Why the answer is not newer.
    pub(crate) problem: Option<String>,
    pub(crate) health: Option<GatewayHealth>,
    /// By unit, in percent of one processor.
    pub(crate) cpu: HashMap<&'static str, f64>,
    pub(crate) rate: Rate,
    pub(crate) chosen: Service,
    pub(crate) overview: Lines,
    pub(crate) mode: Mode,
    /// Output of the last action.
    pub(crate) messages: VecDeque<String>,
    pub(crate) colour: bool,
}

/// Determines what the keys do.
#[derive(Debug)]
pub(crate) enum Mode {
    Overview,
    /// The question before a restart.
    Confirm,
    /// The log of the chosen service.
    Log(Lines),
}

/// Requests per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    Unknown,
    /// The gateway has no metrics, or refuses them, or there are several.
    Off,
    PerSecond(f64),
}

/// Lines of the journal, the last ones at the end.
#[derive(Debug)]
pub(crate) struct Lines {
    kept: VecDeque<(Service, String)>,
    limit: usize,
    /// Lines at the end that are scrolled out of sight.
    scrolled: usize,
    /// Why no more follow.
    pub(crate) problem: Option<String>,
}

impl Lines {
    pub(crate) fn overview() -> Self {
        Self::new(OVERVIEW_LINES)
    }

    pub(crate) fn log() -> Self {
        Self::new(LOG_LINES)
    }

    fn new(limit: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            limit,
            scrolled: 0,
            problem: None,
        }
    }

    /// While scrolled, the visible lines stay in place.
    pub(crate) fn push(&mut self, service: Service, message: &str) {
        for line in message.lines() {
            self.kept.push_back((service, printable(line)));
            if self.scrolled > 0 {
                self.scrolled += 1;
            }
        }
        while self.kept.len() > self.limit {
            self.kept.pop_front();
        }
        self.scroll(0);
    }

    /// Towards the first line, or towards the last one if negative.
    pub(crate) fn scroll(&mut self, lines: isize) {
        let most = self.kept.len().saturating_sub(1);
        self.scrolled = self.scrolled.saturating_add_signed(lines).min(most);
    }

    pub(crate) fn scroll_to_start(&mut self) {
        self.scrolled = self.kept.len().saturating_sub(1);
    }

    /// Follows again.
    pub(crate) fn scroll_to_end(&mut self) {
        self.scrolled = 0;
    }

    /// The rows that fill an area of this size from its bottom.
    fn rows(
        &self,
        width: usize,
        height: usize,
        row: impl Fn(Service, &str) -> (Span<'static>, String),
    ) -> Vec<Line<'static>> {
        let mut rows: VecDeque<Line<'static>> = VecDeque::new();
        let end = self.kept.len().saturating_sub(self.scrolled);
        for (service, text) in self.kept.iter().take(end).rev() {
            let (prefix, text) = row(*service, text);
            let indent = prefix.width();
            let mut parts = wrap(&text, width.saturating_sub(indent)).into_iter();
            let first = Line::from(vec![prefix, Span::raw(parts.next().unwrap_or_default())]);
            let rest = parts.map(|part| Line::raw(format!("{:indent$}{part}", "")));
            for line in std::iter::once(first)
                .chain(rest)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                if rows.len() == height {
                    return rows.into();
                }
                rows.push_front(line);
            }
        }
        rows.into()
    }
}

impl View {
    pub(crate) fn new(colour: bool) -> Self {
        Self {
            services: None,
            problem: None,
            health: None,
            cpu: HashMap::new(),
            rate: Rate::Unknown,
            chosen: Service::Litellm,
            overview: Lines::overview(),
            mode: Mode::Overview,
            messages: VecDeque::new(),
            colour,
        }
    }

    fn reports(&self) -> &[ServiceReport] {
        self.services
            .as_ref()
            .map_or(&[], |services| &services.reports)
    }

    pub(crate) fn gateways(&self) -> usize {
        let units: Vec<&str> = Instance::gateways().map(Instance::unit).collect();
        self.reports()
            .iter()
            .filter(|report| units.contains(&report.unit))
            .count()
    }

    /// Every service that may have a row.
    fn services(&self) -> impl Iterator<Item = Service> {
        let own = self.reports().iter();
        let own = own.filter_map(|report| Service::optional(report.unit));
        Service::ALL.into_iter().chain(own)
    }

    /// Moves down by so many rows, or up if negative.
    pub(crate) fn choose(&mut self, rows: isize) {
        let services: Vec<Service> = self
            .services()
            .filter(|service| {
                self.reports()
                    .iter()
                    .any(|report| report.service == service.name())
            })
            .collect();
        let Some(last) = services.len().checked_sub(1) else {
            return;
        };
        let now = services
            .iter()
            .position(|service| *service == self.chosen)
            .unwrap_or(0);
        self.chosen = services[now.saturating_add_signed(rows).min(last)];
    }

    fn paint(&self, style: Style, color: Color) -> Style {
        if self.colour { style.fg(color) } else { style }
    }

    fn state(&self) -> Option<State> {
        Some(self.services.as_ref()?.state(self.health.as_ref()?))
    }
}

pub(crate) fn draw(frame: &mut Frame<'_>, view: &View) {
    match &view.mode {
        Mode::Log(lines) => draw_log(frame, view, lines),
        Mode::Overview | Mode::Confirm => draw_overview(frame, view),
    }
}

fn draw_overview(frame: &mut Frame<'_>, view: &View) {
    let reports = view.reports();
    let notes: Vec<&ServiceReport> = reports
        .iter()
        .filter(|report| report.changed.as_ref().is_some_and(|list| !list.is_empty()))
        .collect();
    let blockers = view
        .services
        .as_ref()
        .map_or(&[][..], |services| &services.blockers);
    let [head, services, blocked, marks, rule, logs, messages, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(height(reports.len()) + 2),
        Constraint::Length(height(blockers.len())),
        Constraint::Length(height(notes.len())),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(height(view.messages.len())),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    lines(frame, head, header(view));
    lines(frame, services, table(view));
    let blocked_text = blockers.iter().map(|blocker| {
        let message = blocker.message.as_deref().unwrap_or_default();
        let text = format!("! {}: {message}", blocker.words);
        let text = clip(
            text.trim_end_matches([':', ' ']),
            usize::from(blocked.width),
        );
        let style = if blocker.failing {
            view.paint(Style::new(), Color::Red)
        } else {
            Style::new()
        };
        Line::styled(text, style)
    });
    lines(frame, blocked, blocked_text.collect());
    let marks_text = notes.iter().map(|report| {
        let changed = report.changed.as_deref().unwrap_or_default().join(", ");
        Line::raw(format!(
            "* {}: {changed}; r restarts with it",
            report.service
        ))
    });
    lines(frame, marks, marks_text.collect());
    let title = match &view.overview.problem {
        Some(problem) => format!("── logs: {problem} "),
        None => "── logs ".into(),
    };
    lines(frame, rule, vec![ruled(&title, rule.width, view)]);
    let width = usize::from(logs.width);
    let names = view
        .services()
        .map(|service| service.name().len())
        .max()
        .unwrap_or(0);
    let rows = view
        .overview
        .rows(width, usize::from(logs.height), |service, text| {
            let style = view.paint(Style::new(), color(service));
            // One row each; key l shows whole lines.
            let text = clip(text, width.saturating_sub(names + 3));
            (
                Span::styled(format!("{:names$} | ", service.name()), style),
                text,
            )
        });
    lines(frame, logs, rows);
    lines(
        frame,
        messages,
        view.messages
            .iter()
            .map(|message| Line::raw(message.clone()))
            .collect(),
    );
    let text = match view.mode {
        Mode::Confirm => format!(" restart {}? y/n ", view.chosen.name()),
        _ => " j/k choose   r restart   l log   q quit ".into(),
    };
    lines(frame, keys, vec![bar(&text, keys.width)]);
}

fn draw_log(frame: &mut Frame<'_>, view: &View, log: &Lines) {
    let [body, keys] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    let rows = log.rows(
        usize::from(body.width),
        usize::from(body.height),
        |_, text| (Span::raw(""), text.to_owned()),
    );
    lines(frame, body, rows);
    let state = match (&log.problem, log.scrolled) {
        (Some(problem), _) => problem.clone(),
        (None, 0) => "following".into(),
        (None, lines) => format!("{lines} more below"),
    };
    let text = format!(
        " {}: {state}   j/k PgUp/PgDn g/G scroll   q back ",
        view.chosen.name()
    );
    lines(frame, keys, vec![bar(&text, keys.width)]);
}

fn header(view: &View) -> Vec<Line<'static>> {
    let (word, style) = match view.state() {
        None => ("loading", Style::new()),
        Some(State::Healthy) => ("healthy", view.paint(Style::new(), Color::Green)),
        Some(State::Starting) => ("starting", view.paint(Style::new(), Color::Yellow)),
        Some(State::Degraded) => ("degraded", view.paint(Style::new(), Color::Red)),
        Some(State::Stopped) => ("stopped", Style::new()),
    };
    let rate = match view.rate {
        Rate::Unknown | Rate::Off => String::new(),
        Rate::PerSecond(rate) => format!("   {rate:.1} requests/s"),
    };
    let second = match (&view.problem, &view.health) {
        (Some(problem), _) => Line::styled(problem.clone(), view.paint(Style::new(), Color::Red)),
        (None, Some(health)) => {
            let services = view.services.as_ref();
            let version = || services.and_then(|services| services.version.clone());
            Line::raw(health.clone().or_version(version).to_string())
        }
        (None, None) => Line::raw(""),
    };
    let address = view
        .services
        .as_ref()
        .map_or("", |services| &services.address);
    vec![
        Line::from(vec![
            Span::raw(format!("gateway {address}   ")),
            Span::styled(word, style.add_modifier(Modifier::BOLD)),
            Span::raw(rate),
        ]),
        second,
    ]
}

/// Columns of fixed width, so that nothing moves when a number grows: 78 in all.
fn row(cells: [&str; 7]) -> String {
    let [name, state, health, cpu, memory, uptime, restarts] = cells;
    format!("{name:<10} {state:<21} {health:<9} {cpu:>7} {memory:>9} {uptime:>7} {restarts:>8}")
}

fn table(view: &View) -> Vec<Line<'static>> {
    let heading = row([
        "SERVICE", "STATE", "HEALTH", "CPU", "MEMORY", "UPTIME", "RESTARTS",
    ]);
    let mut rows = vec![
        Line::raw(""),
        Line::styled(
            format!("  {heading}"),
            Style::new().add_modifier(Modifier::BOLD),
        ),
    ];
    if let Some(services) = &view.services
        && services.reports.is_empty()
    {
        rows.push(Line::raw(
            "  no unit of the stack is installed: `litellm-units generate`",
        ));
    }
    for report in view.reports() {
        let cpu = view
            .cpu
            .get(report.unit)
            .map_or("-".into(), |percent| format!("{percent:.1}%"));
        let text = row([
            &report.marked_name(),
            &clip(&report.state(), 21),
            &report.health(),
            &cpu,
            &report.memory(),
            &report.uptime(),
            &report.restarts.to_string(),
        ]);
        let mut style = Style::new();
        if report.is_broken() {
            style = view.paint(style, Color::Red);
        } else if report.is_starting() || report.active == ActiveState::Deactivating {
            style = view.paint(style, Color::Yellow);
        } else if report.health == Some(container_state::ContainerHealth::Healthy) {
            style = view.paint(style, Color::Green);
        }
        let chosen = report.service == view.chosen.name();
        if chosen {
            style = style.add_modifier(Modifier::REVERSED);
        }
        rows.push(Line::styled(
            format!("{} {text}", if chosen { '>' } else { ' ' }),
            style,
        ));
    }
    rows
}

fn color(service: Service) -> Color {
    match service {
        Service::Litellm => Color::Cyan,
        Service::Postgres => Color::Yellow,
        Service::Redis => Color::Green,
        Service::Migrate => Color::Magenta,
        Service::Entrance | Service::Extra(_) => Color::Reset,
    }
}

fn ruled(title: &str, width: u16, view: &View) -> Line<'static> {
    let rest = usize::from(width).saturating_sub(title.width());
    Line::styled(
        format!("{title}{}", "─".repeat(rest)),
        view.paint(Style::new(), Color::DarkGray),
    )
}

fn bar(text: &str, width: u16) -> Line<'static> {
    Line::styled(
        format!("{text:<width$}", width = usize::from(width)),
        Style::new().add_modifier(Modifier::REVERSED),
    )
}

fn lines(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'_>>) {
    for (line, row) in lines.into_iter().zip(area.rows()) {
        frame.render_widget(line, row);
    }
}

fn height(rows: usize) -> u16 {
    u16::try_from(rows).unwrap_or(u16::MAX)
}

/// Cuts text to so many cells; an ellipsis shows that something is missing.
fn clip(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut parts = wrap(text, width.saturating_sub(1)).into_iter();
    format!("{}…", parts.next().unwrap_or_default())
}

/// Breaks text into rows of at most so many cells.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut rows = vec![String::new()];
    let mut used = 0;
    for character in text.chars() {
        let cells = character.width().unwrap_or(0);
        if used + cells > width.max(1) {
            rows.push(String::new());
            used = 0;
        }
        used += cells;
        if let Some(row) = rows.last_mut() {
            row.push(character);
        }
    }
    rows
}

pub(crate) fn overdue(since: Duration) -> String {
    format!("systemd has not answered for {}", duration(since))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::host::systemd::UnitResult;

    fn report(service: Service, active: ActiveState, sub: &str) -> ServiceReport {
        ServiceReport {
            service: service.name(),
            unit: service.unit(),
            uptime_seconds: (active == ActiveState::Active).then_some(754),
            active,
            sub: sub.into(),
            result: UnitResult::Success,
            queued: false,
            health: (sub == "running").then_some(container_state::ContainerHealth::Healthy),
            restarts: 0,
            memory_bytes: Some(89 << 20),
            memory_held_bytes: None,
            memory_limit_bytes: None,
            cpu_seconds: None,
            image: None,
            digest: None,
            changed: Some(Vec::new()),
        }
    }

    fn view() -> View {
        let mut view = View::new(false);
        let mut gateway = report(Service::Litellm, ActiveState::Active, "running");
        gateway.changed = Some(vec!["OPENAI_API_KEY changed".into()]);
        view.cpu.insert(gateway.unit, 7.44);
        view.services = Some(Services {
            reports: vec![
                report(Service::Postgres, ActiveState::Active, "running"),
                report(Service::Redis, ActiveState::Failed, "failed"),
                gateway,
            ],
            address: "http://127.0.0.1:24157".into(),
            ..Services::default()
        });
        view.health = Some(GatewayHealth::Ready {
            version: Some("1.108.14".into()),
        });
        view.rate = Rate::PerSecond(12.34);
        view.overview.push(
            Service::Redis,
            "\u{1b}[31mred\u{1b}[0m\tand\u{7} wide 漢字\nsecond",
        );
        view.overview.push(Service::Litellm, &"long ".repeat(30));
        view
    }

    fn rows(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer();
        (0..height)
            .map(|y| {
                let mut row = String::new();
                let mut x = 0;
                while x < width {
                    let symbol = buffer[(x, y)].symbol();
                    row.push_str(symbol);
                    x += u16::try_from(symbol.width()).unwrap().max(1);
                }
                row.trim_end().to_owned()
            })
            .collect()
    }

    #[test]
    fn overview() {
        assert_eq!(
            rows(&view(), 80, 16),
            [
                "gateway http://127.0.0.1:24157   degraded   12.3 requests/s",
                "ready, database connected, LiteLLM 1.108.14",
                "",
                "  SERVICE    STATE                 HEALTH        CPU    MEMORY  UPTIME RESTARTS",
                "  postgres   active (running)      healthy         -    89 MiB  12 min        0",
                "  redis      failed (success)      -               -    89 MiB       -        0",
                "> litellm*   active (running)      healthy      7.4%    89 MiB  12 min        0",
                "* litellm: OPENAI_API_KEY changed; r restarts with it",
                "── logs ────────────────────────────────────────────────────────────────────────",
                "redis    | red and wide 漢字",
                "redis    | second",
                "litellm  | long long long long long long long long long long long long long lon…",
                "",
                "",
                "",
                " j/k choose   r restart   l log   q quit",
            ]
        );
    }

    /// A rate is shown of one gateway alone.
    #[test]
    fn gateways_are_counted() {
        let mut view = view();
        assert_eq!(view.gateways(), 1);
        let mut further = report(Service::Litellm, ActiveState::Active, "running");
        further.unit = "litellm-2.service";
        view.services.as_mut().unwrap().reports.push(further);
        assert_eq!(view.gateways(), 2);
    }

    #[test]
    fn a_question_and_its_outcome() {
        let mut view = view();
        view.choose(-1);
        view.mode = Mode::Confirm;
        view.messages.push_back("waiting for redis".into());
        assert_eq!(
            rows(&view, 80, 12)[9..],
            [
                "litellm  | long long long long long long long long long long long long long lon…",
                "waiting for redis",
                " restart redis? y/n",
            ]
        );
    }

    #[test]
    fn a_log_is_wrapped_and_scrolled() {
        let mut view = view();
        let mut log = Lines::log();
        for number in 1..=9 {
            log.push(Service::Litellm, &format!("{number} aaaaaaaaa bbbbbbbbb"));
        }
        log.scroll(3);
        // The visible lines stay in place.
        log.push(Service::Litellm, "10");
        view.mode = Mode::Log(log);
        assert_eq!(
            rows(&view, 12, 4),
            ["bbbbbbbbb", "6 aaaaaaaaa", "bbbbbbbbb", " litellm: 4"]
        );
    }

    #[test]
    fn a_tiny_terminal() {
        for (width, height) in [(1, 1), (2, 3), (20, 5), (300, 2)] {
            rows(&view(), width, height);
        }
    }
}
