//! `catalog shell`: looks around in an archive by its catalog, and restores what was selected. Spec:
//! catalog.md §6, §7.

mod browser;
mod editor;
mod line;

use self::browser::{Browser, joined, path_of, shown};
use self::editor::{Completion, Words};
use super::find::searched;
use super::opened::Opened;
use super::pxar::mode_text;
use super::restore::{
    self, archive_argument, ignore_options, output_of, output_options, pattern_option, patterns_of,
    selection, snapshot_or_group,
};
use crate::args::{self, flag, is_set, limits, namespace, repository};
use crate::encryption::key_options;
use crate::exit::{Shown, one_line};
use crate::plugins::Plugins;
use crate::progress::progress_option;
use crate::signals::{cancel_on_signal, end_at_prompt, interrupt};
use crate::terminal::{local_time, stdout_width};
use anyhow::{Result, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use keepwell_engine::Cancel;
use keepwell_engine::browse::EntryPath;
use keepwell_engine::output::OutputOptions;
use keepwell_engine::pattern::{PatternList, Verdict};
use keepwell_engine::plugin::{Entry, EntryKind};
use keepwell_engine::report::shown_path;
use keepwell_engine::restore::RestoreRequest;
use rustyline::error::ReadlineError;
use rustyline::{CompletionType, Config, Editor};
use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use unicode_width::UnicodeWidthStr;

pub(crate) fn command() -> Command {
    Command::new("shell")
        .about("Look around in a file archive, and restore what you choose")
        .long_about(
            "Look around in a file archive, and restore what you choose.\n\nOnly the catalog is read \
             until more is needed. `help` shows the commands. Without a terminal, commands are read from \
             stdin, one on each line; where one of them fails, the exit code is 255.",
        )
        .arg(snapshot_or_group("snapshot"))
        .arg(archive_argument("Such as root.pxar"))
        .arg(repository())
        .arg(namespace())
        .args(key_options())
        .args(limits())
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let text = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
    let archive = text("archive-name");
    if archive.ends_with(".img") || archive.ends_with(".blob") {
        bail!("Can only mount pxar archives.");
    }
    let opened = Opened::of(matches, text("snapshot"))?;
    let at_terminal = io::stdin().is_terminal();
    // At a prompt Ctrl-C ends a command, elsewhere everything.
    let cancel = if at_terminal { cancel_on_signal() } else { Cancel::default() };
    let browser = Browser::open(plugins, opened, archive, cancel)?;
    let mut shell = Shell { browser: Rc::new(RefCell::new(browser)), selected: Vec::new() };
    tracing::info!("Starting interactive shell");
    match at_terminal {
        true => shell.interact(),
        false => shell.read(&mut io::stdin().lock()),
    }
}

/// Longer lines are no commands.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// As much of a line its error shows.
const LINE_SHOWN_CHARS: usize = 60;

/// What was chosen for `restore-selected`.
#[derive(PartialEq, Eq)]
enum Selected {
    Path(EntryPath),
    Pattern(Vec<u8>),
}

struct Shell<'a> {
    browser: Rc<RefCell<Browser<'a>>>,
    selected: Vec<Selected>,
}

/// Whether there are more lines to come.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}

fn path_argument(help: &'static str) -> Arg {
    Arg::new("path")
        .value_name("PATH")
        .help(help)
        .value_parser(value_parser!(OsString))
        .allow_hyphen_values(true)
}

fn target_argument() -> Arg {
    Arg::new("target")
        .value_name("TARGET")
        .help("Directory of this host; made if it is not there")
        .required(true)
        .value_parser(value_parser!(PathBuf))
}

/// The commands, and what their words are.
fn commands() -> Vec<(Command, Words)> {
    let restoring = |command: Command| {
        command.args(output_options()).args(ignore_options()).arg(progress_option())
    };
    let path = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).arg(path_argument("In the archive").required(true))
    };
    vec![
        (
            Command::new("cd")
                .about("Go to a directory, or to the root")
                .arg(path_argument("In the archive")),
            Words::Paths,
        ),
        (Command::new("clear-selected").about("Forget what was selected"), Words::Other),
        (path("deselect", "Take a path back from the selection"), Words::Paths),
        (Command::new("exit").about("End the shell"), Words::Other),
        (
            Command::new("find")
                .about("List what matches a pattern, from the root on")
                .arg(
                    Arg::new("pattern")
                        .value_name("PATTERN")
                        .help("Such as '*.conf' or etc/**/*.conf")
                        .required(true)
                        .value_parser(value_parser!(OsString)),
                )
                .arg(flag("select", "Add the pattern to the selection")),
            Words::Other,
        ),
        (
            Command::new("list-selected")
                .about("List what `restore-selected` would restore")
                .arg(flag("patterns", "List what was given instead")),
            Words::Other,
        ),
        (
            Command::new("ls").about("List a directory").arg(path_argument("In the archive")),
            Words::Paths,
        ),
        (Command::new("pwd").about("Show the current directory"), Words::Other),
        (
            restoring(
                Command::new("restore")
                    .about("Restore the whole archive, or what matches")
                    .arg(target_argument())
                    .arg(pattern_option()),
            ),
            Words::Targets,
        ),
        (
            restoring(
                Command::new("restore-selected")
                    .about("Restore what was selected")
                    .arg(target_argument()),
            ),
            Words::Targets,
        ),
        (path("select", "Select a file, or a directory with all in it"), Words::Paths),
        (path("stat", "Show what the archive knows of an entry"), Words::Paths),
    ]
}

fn grammar() -> Command {
    Command::new("shell")
        .bin_name("")
        .no_binary_name(false)
        .infer_subcommands(true)
        .subcommand_required(true)
        .disable_version_flag(true)
        .help_template("{subcommands}")
        .subcommands(commands().into_iter().map(|(command, _)| command))
}

impl<'a> Shell<'a> {
    /// At a terminal, with line editing.
    fn interact(&mut self) -> Result<()> {
        let config = Config::builder().completion_type(CompletionType::List).auto_add_history(true);
        let mut editor = Editor::with_config(config.build())?;
        let names =
            commands().into_iter().map(|(command, words)| (command.get_name().into(), words));
        let commands = names.chain([("help".into(), Words::Commands)]).collect();
        editor.set_helper(Some(Completion { browser: self.browser.clone(), commands }));
        let at_prompt = Arc::new(AtomicBool::new(false));
        end_at_prompt(at_prompt.clone())?;
        loop {
            let prompt = self.prompt();
            at_prompt.store(true, Ordering::Relaxed);
            let line = editor.readline(&prompt);
            at_prompt.store(false, Ordering::Relaxed);
            match line {
                Ok(text) => {
                    // What was pasted may be several.
                    for line in text.lines() {
                        let (next, _) = self.line(line.as_bytes(), None);
                        if next == Next::End {
                            return Ok(());
                        }
                        // Ctrl-C ends this one and those after it.
                        if interrupt().swap(false, Ordering::Relaxed) {
                            break;
                        }
                    }
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(ReadlineError::Interrupted) => {}
                Err(error) => bail!("unable to read from the terminal: {error}"),
            }
        }
    }

    /// Commands of a script. A failure does not end it, but counts.
    fn read(&mut self, input: &mut dyn BufRead) -> Result<()> {
        let (mut failures, mut number) = (0u64, 0u64);
        let mut line = Vec::new();
        loop {
            line.clear();
            if input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            number += 1;
            if line.len() as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
                bail!("line {number} has more than {LINE_BYTES_MAX} bytes");
            }
            let (next, failed) = self.line(&line, Some(number));
            failures += u64::from(failed);
            if interrupt().load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if next == Next::End {
                break;
            }
        }
        match failures {
            0 => Ok(()),
            1 => bail!("one command failed"),
            _ => bail!("{failures} commands failed"),
        }
    }

    fn prompt(&self) -> String {
        let browser = self.browser.borrow();
        let names = browser.cwd().into_iter().map(|name| match String::from_utf8(name) {
            Ok(name) => shown_path(name.as_bytes()),
            Err(_) => "<non-utf8-dir>".into(),
        });
        format!("pxar:/{} > ", names.collect::<Vec<_>>().join("/"))
    }

    /// Runs a line, of a script with a number, and tells its error. Also says whether there was one.
    fn line(&mut self, line: &[u8], number: Option<u64>) -> (Next, bool) {
        match self.run(line) {
            Ok(next) => (next, false),
            Err(error) => match error.downcast::<Shown>() {
                Ok(Shown(text)) => (Next::GoOn, write!(io::stdout(), "{text}").is_err()),
                Err(error) => {
                    let _ = io::stdout().flush();
                    let text = one_line(&error);
                    let _ = match number {
                        None => writeln!(io::stderr(), "Error: {text}"),
                        Some(number) => {
                            let shown = shown_path(line.trim_ascii());
                            let short: String = shown.chars().take(LINE_SHOWN_CHARS).collect();
                            writeln!(io::stderr(), "Error: line {number} ({short}): {text}")
                        }
                    };
                    (Next::GoOn, true)
                }
            },
        }
    }

    fn run(&mut self, line: &[u8]) -> Result<Next> {
        let (words, problem) = line::split(line);
        if let Some(problem) = problem {
            bail!("{problem}");
        }
        if words.is_empty() {
            return Ok(Next::GoOn);
        }
        let words = words.into_iter().map(|word| OsString::from_vec(word.bytes));
        let words = std::iter::once("shell".into()).chain(words).collect();
        let matches = args::parse(grammar(), words)?;
        let Some((name, matches)) = matches.subcommand() else { bail!("no command was given") };
        let path = || matches.get_one::<OsString>("path").map(|path| path.as_bytes());
        let mut browser = self.browser.borrow_mut();
        let out = &mut io::stdout().lock();
        match name {
            "exit" => return Ok(Next::End),
            "pwd" => writeln!(out, "{}", shown(&joined(&browser.cwd())))?,
            "cd" => browser.change_directory(path().unwrap_or(b"/"))?,
            "ls" => {
                let found = browser.list_path(path().unwrap_or(b"."))?;
                print_names(out, found.into_iter().map(|named| named.name).collect())?;
            }
            "stat" => {
                let steps = browser.resolve(path().unwrap_or(b"."), false)?;
                let path = path_of(&steps);
                let entry = browser.entry(&path)?;
                print_stat(out, &joined(&path), &entry)?;
            }
            "find" => {
                let pattern = matches.get_one::<OsString>("pattern").map(|given| given.as_bytes());
                let pattern = pattern.unwrap_or_default();
                let patterns = searched(pattern)?;
                let found = find(&mut browser, &patterns, out)?;
                let selected = Selected::Pattern(pattern.to_vec());
                if is_set(matches, "select") && found && !self.selected.contains(&selected) {
                    self.selected.push(selected);
                }
            }
            "select" => {
                let path = path_of(&browser.resolve(path().unwrap_or_default(), false)?);
                let text = shown(&joined(&path));
                let selected = Selected::Path(path);
                if self.selected.contains(&selected) {
                    writeln!(out, "path already selected: {text}")?;
                } else {
                    self.selected.push(selected);
                    writeln!(out, "added path: {text}")?;
                }
            }
            "deselect" => {
                let path = path_of(&browser.resolve(path().unwrap_or_default(), false)?);
                let text = shown(&joined(&path));
                let selected = Selected::Path(path);
                let count = self.selected.len();
                self.selected.retain(|other| *other != selected);
                match self.selected.len() == count {
                    true => writeln!(out, "path not selected: {text}")?,
                    false => writeln!(out, "removed path from selection: {text}")?,
                }
            }
            "clear-selected" => {
                self.selected.clear();
                writeln!(out, "cleared selection")?;
            }
            "list-selected" => {
                list_selected(&mut browser, &self.selected, is_set(matches, "patterns"), out)?;
            }
            "restore" => {
                let request =
                    RestoreRequest { patterns: patterns_of(matches)?, ..request(matches) };
                restore(&mut browser, matches, request)?;
            }
            "restore-selected" => {
                if self.selected.is_empty() {
                    bail!("no entries selected");
                }
                let mut request = request(matches);
                match paths_of(&self.selected) {
                    // These are looked up; for patterns the whole archive is walked.
                    Some(paths) => request.paths = paths,
                    None => request.patterns = pattern_list(&self.selected)?,
                }
                restore(&mut browser, matches, request)?;
            }
            other => bail!("there is no command '{other}'"),
        }
        Ok(Next::GoOn)
    }
}

fn request(matches: &ArgMatches) -> RestoreRequest {
    let options = OutputOptions { allow_existing_dirs: true, ..output_of(matches) };
    let keep_going = is_set(matches, "keep-going");
    RestoreRequest { options, keep_going, ..RestoreRequest::default() }
}

/// Where nothing but paths was selected.
fn paths_of(selected: &[Selected]) -> Option<Vec<EntryPath>> {
    let path = |selected: &Selected| match selected {
        Selected::Path(path) => Some(path.clone()),
        Selected::Pattern(_) => None,
    };
    selected.iter().map(path).collect()
}

fn pattern_list(selected: &[Selected]) -> Result<PatternList> {
    let patterns = selected.iter().filter_map(|selected| match selected {
        Selected::Pattern(pattern) => Some(&pattern[..]),
        Selected::Path(_) => None,
    });
    let mut list = selection(patterns)?;
    for selected in selected {
        if let Selected::Path(path) = selected {
            list.include_path(path);
        }
    }
    Ok(list)
}

fn restore(browser: &mut Browser<'_>, matches: &ArgMatches, request: RestoreRequest) -> Result<()> {
    let Some(target) = matches.get_one::<PathBuf>("target") else { bail!("missing argument") };
    if target == Path::new("-") {
        bail!("the shell restores into directories: `keepwell extract … --to -` writes to stdout");
    }
    let selects = !request.patterns.is_empty();
    let stored = browser.stored()?;
    let (streams, source) = (stored.streams(), stored.source());
    let summary = restore::extract(matches, browser.loaded(), streams, source, request, target)?;
    if selects && summary.entries == 0 {
        bail!("nothing in the archive matches: `find` shows what would");
    }
    Ok(())
}

/// Prints what matches, and says whether anything did.
fn find(browser: &mut Browser<'_>, patterns: &PatternList, out: &mut dyn Write) -> Result<bool> {
    let mut found = false;
    let at_terminal = io::stdout().is_terminal();
    browser.walk(&mut |path, named| {
        let path = joined(path);
        match patterns.judge(&path, named.directory.is_some()) {
            Verdict::Exclude => return Ok(false),
            Verdict::Include => {
                found = true;
                print_line(out, &path, at_terminal)?;
            }
            Verdict::None => {}
        }
        Ok(true)
    })?;
    Ok(found)
}

fn list_selected(
    browser: &mut Browser<'_>,
    selected: &[Selected],
    as_given: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let at_terminal = io::stdout().is_terminal();
    let paths = paths_of(selected);
    if as_given || paths.is_none() {
        for selected in selected {
            let text = match selected {
                Selected::Path(path) => shown(&joined(path)),
                Selected::Pattern(pattern) => shown(pattern),
            };
            match as_given {
                true => writeln!(out, "{text}")?,
                false => tracing::info!("selected: {text}"),
            }
        }
        if as_given {
            return Ok(());
        }
    }
    if selected.is_empty() {
        return Ok(());
    }
    let patterns = match &paths {
        Some(_) => PatternList::default(),
        None => pattern_list(selected)?,
    };
    let chosen: HashSet<&EntryPath> = paths.iter().flatten().collect();
    // All directories above them.
    let above: HashSet<&[Vec<u8>]> =
        chosen.iter().flat_map(|path| (0..path.len()).map(|length| &path[..length])).collect();
    let everything = selected.contains(&Selected::Path(Vec::new()));
    // Whether what is below the directories that are open is selected.
    let mut wanted = vec![everything];
    browser.walk(&mut |path, named| {
        wanted.truncate(path.len());
        let inherited = wanted.last().copied().unwrap_or(everything);
        let whole = joined(path);
        let is_wanted = match patterns.judge(&whole, named.directory.is_some()) {
            Verdict::Include => true,
            Verdict::Exclude => false,
            Verdict::None => inherited || chosen.contains(&path.to_vec()),
        };
        if is_wanted {
            print_line(out, &whole, at_terminal)?;
        }
        if named.directory.is_some() {
            wanted.push(is_wanted);
        }
        // Nothing below other directories was selected by its path.
        Ok(is_wanted || paths.is_none() || above.contains(path))
    })
}

/// Bytes as they are, but for a terminal, which names must not steer.
fn print_line(out: &mut dyn Write, path: &[u8], at_terminal: bool) -> Result<()> {
    match at_terminal {
        true => writeln!(out, "{}", shown_path(path))?,
        false => {
            out.write_all(path)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

/// One on each line, or in columns at a terminal.
fn print_names(out: &mut dyn Write, names: Vec<Vec<u8>>) -> Result<()> {
    let Some(width) = stdout_width() else {
        return names.iter().try_for_each(|name| print_line(out, name, false));
    };
    let names: Vec<String> = names.iter().map(|name| line::quoted(name)).collect();
    let widest = names.iter().map(|name| name.width()).max().unwrap_or(0) + 2;
    let columns = (width as usize / widest).max(1);
    let rows = names.len().div_ceil(columns);
    for row in 0..rows {
        let mut text = String::new();
        for name in names.iter().skip(row).step_by(rows.max(1)) {
            text += name;
            text += &" ".repeat(widest - name.width());
        }
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}

/// As the reference prints an entry, bit for bit: cli.md §3.
fn print_stat(out: &mut dyn Write, path: &[u8], entry: &Entry) -> Result<()> {
    let metadata = &entry.metadata;
    let path =
        if io::stdout().is_terminal() { shown_path(path).into_bytes() } else { path.to_vec() };
    let kind = match metadata.kind {
        EntryKind::File => "file",
        EntryKind::Directory => "directory",
        EntryKind::Symlink => "symlink",
        EntryKind::BlockDevice => "block special file",
        EntryKind::CharacterDevice => "character special file",
        EntryKind::Fifo => "fifo",
        EntryKind::Socket => "socket",
    };
    out.write_all(b"  File: ")?;
    out.write_all(&path)?;
    if let Some(target) = &metadata.link_target {
        write!(out, " -> {}", shown(target))?;
    }
    let size = match metadata.device {
        Some((major, minor)) => format!("{major},{minor}"),
        None => metadata.size.to_string(),
    };
    writeln!(out, "\n  Size: {size:<13} Type: {kind}")?;
    let (mode, owner, group) = (metadata.mode & 0o7777, metadata.owner, metadata.group);
    let text = mode_text(entry);
    writeln!(out, "Access: ({mode:o}/{text})  Uid: {owner:<5} Gid: {group:<5}")?;
    let modified = local_time(metadata.modified.seconds, "%Y-%m-%d %H:%M:%S");
    writeln!(out, "Modify: {modified}")?;
    Ok(())
}
