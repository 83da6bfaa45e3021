//! Settings for all commands: `/etc/keepwell/config.toml`, and over it the user's
//! `~/.config/keepwell/config.toml`. What the command line and the environment say goes before both.

use crate::files::only_ours;
use crate::plugins::Limits;
use crate::terminal::xdg_config;
use anyhow::{Context, Result, anyhow, bail};
use keepwell_engine::plugin::Capability;
use keepwell_wasm::web_place;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

const SYSTEM: &str = "/etc/keepwell/config.toml";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File(PathBuf),
    Environment(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
        }
    }
}

/// An option of a plugin that is set in a file.
pub(crate) struct OptionSetting<'a> {
    pub(crate) plugin: &'a str,
    pub(crate) option: &'a str,
    /// as they would be given on the command line
    pub(crate) values: Vec<String>,
    pub(crate) origin: &'a Origin,
}

impl fmt::Display for OptionSetting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}': plugins.{}.options.{}", self.origin, self.plugin, self.option)
    }
}

/// What a file says, by keys such as `limits.memory`.
#[derive(Default)]
pub(crate) struct Config {
    settings: BTreeMap<Vec<String>, (Value, Origin)>,
}

/// The policy that `prune` uses unless something else is said.
pub(crate) const DEFAULT_POLICY: &str = "keep";

impl Config {
    /// Reads the files that are there.
    pub(crate) fn load() -> Result<Self> {
        let mut config = Self::default();
        let user = xdg_config().map(|dir| dir.join("keepwell/config.toml"));
        for path in [Some(SYSTEM.into()), user].into_iter().flatten() {
            if let Some(text) = read(&path)? {
                config.add(&path, &text)?;
            }
        }
        Ok(config)
    }

    /// Adds a file's settings over those that are there.
    fn add(&mut self, path: &Path, text: &str) -> Result<()> {
        let shown = path.display();
        let table: Table = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            anyhow!("'{shown}', line {line}: {}", error.message())
        })?;
        let mut found = Vec::new();
        flatten(&mut Vec::new(), table, &mut found);
        for (key, value) in found {
            check(&key, &value)
                .map_err(|problem| anyhow!("'{shown}': {}: {problem}", key.join(".")))?;
            self.settings.insert(key, (value, Origin::File(path.to_owned())));
        }
        Ok(())
    }

    fn get(&self, key: &[&str]) -> Option<&Value> {
        let key: Vec<String> = key.iter().map(|part| (*part).to_owned()).collect();
        self.settings.get(&key).map(|(value, _)| value)
    }

    fn text(&self, key: &[&str]) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    pub(crate) fn policy(&self) -> &str {
        self.text(&["policy"]).unwrap_or(DEFAULT_POLICY)
    }

    pub(crate) fn output_format(&self) -> Option<&str> {
        self.text(&["output-format"])
    }

    /// The plugin that is to serve archives of this extension.
    pub(crate) fn plugin_for(&self, extension: &str) -> Option<&str> {
        self.text(&["archive-types", extension])
    }

    /// Extensions and the plugins that are to serve them.
    pub(crate) fn archive_types(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().filter_map(|(key, (value, _))| match &key[..] {
            [first, extension] if first == "archive-types" => {
                Some((extension.as_str(), value.as_str()?))
            }
            _ => None,
        })
    }

    /// Of all plugins.
    pub(crate) fn limits(&self) -> Limits {
        self.limits_at(&[], Limits::default())
    }

    /// Of one.
    pub(crate) fn limits_of(&self, plugin: &str) -> Limits {
        self.limits_at(&["plugins", plugin], self.limits())
    }

    fn limits_at(&self, at: &[&str], mut limits: Limits) -> Limits {
        let get = |name| self.get(&[at, &["limits", name]].concat());
        if let Some(Ok(bytes)) = get("memory").and_then(Value::as_str).map(bytes_of) {
            limits.memory_bytes_max = bytes;
        }
        if let Some(seconds) = get("call-seconds").and_then(Value::as_integer) {
            limits.call_time_max = Duration::from_secs(seconds.unsigned_abs());
        }
        limits
    }

    /// What a plugin may have if it asks for it.
    pub(crate) fn grants_of(&self, plugin: &str) -> Vec<Capability> {
        let get = |name| self.get(&["plugins", plugin, "grants", name]);
        let all = |name, capability: fn(String) -> Capability| {
            get(name).map(texts).unwrap_or_default().into_iter().map(capability)
        };
        let mut grants: Vec<Capability> = all("read", Capability::Read)
            .chain(all("run", Capability::Run))
            .chain(all("environment", Capability::Environment))
            .chain(all("http", Capability::Http))
            .collect();
        let is_true = |name| get(name).and_then(Value::as_bool) == Some(true);
        grants.extend(is_true("clock").then_some(Capability::Clock));
        grants.extend(is_true("random").then_some(Capability::Random));
        let scratch = get("scratch").and_then(Value::as_str);
        let scratch = scratch.and_then(|size| keepwell_model::size::parse(size).ok());
        grants.extend(scratch.map(Capability::Scratch));
        grants
    }

    /// Plugins of which the settings say something.
    pub(crate) fn plugins(&self) -> BTreeSet<&str> {
        let of_plugins = self.settings.keys().filter_map(|key| match &key[..] {
            [first, plugin, ..] if first == "plugins" => Some(plugin.as_str()),
            _ => None,
        });
        of_plugins.collect()
    }

    /// What is said of plugins' options.
    pub(crate) fn options(&self) -> impl Iterator<Item = OptionSetting<'_>> {
        self.settings.iter().filter_map(|(key, (value, origin))| match &key[..] {
            [first, plugin, options, option] if first == "plugins" && options == "options" => {
                Some(OptionSetting { plugin, option, values: texts(value), origin })
            }
            _ => None,
        })
    }

    /// All keys with values and where those come from, also of what is not set.
    pub(crate) fn all(&self) -> Vec<(String, Value, Origin)> {
        let Limits { memory_bytes_max, call_time_max, .. } = Limits::default();
        let call_seconds = i64::try_from(call_time_max.as_secs()).unwrap_or(i64::MAX);
        let defaults = [
            (vec!["policy"], Value::from(DEFAULT_POLICY)),
            (vec!["output-format"], Value::from("text")),
            (vec!["limits", "memory"], Value::from(format!("{}MiB", memory_bytes_max >> 20))),
            (vec!["limits", "call-seconds"], Value::from(call_seconds)),
        ];
        let defaults = defaults.into_iter().map(|(key, value)| {
            (key.into_iter().map(str::to_owned).collect(), (value, Origin::Default))
        });
        let mut all: BTreeMap<Vec<String>, (Value, Origin)> = defaults.collect();
        all.extend(self.settings.clone());
        if let Some(format) = environment_format() {
            let format = (Value::from(format), Origin::Environment(FORMAT_VARIABLE));
            all.insert(vec!["output-format".into()], format);
        }
        all.into_iter().map(|(key, (value, origin))| (key.join("."), value, origin)).collect()
    }
}

const FORMAT_VARIABLE: &str = "PROXMOX_OUTPUT_FORMAT";

/// The output format that the environment names.
pub(crate) fn environment_format() -> Option<String> {
    std::env::var(FORMAT_VARIABLE).ok().filter(|format| !format.is_empty())
}

/// The text of a file of settings; none where it is not for us.
fn read(path: &Path) -> Result<Option<String>> {
    let shown = path.display();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        // The directory may be a server's, with its keys.
        Err(error) if path == Path::new(SYSTEM) && error.kind() == ErrorKind::PermissionDenied => {
            tracing::debug!("unable to read '{shown}': {error}");
            return Ok(None);
        }
        Err(error) => return Err(error).context(format!("unable to read '{shown}'")),
    };
    // It says what plugins may do. `sudo` may keep the home of somebody else.
    if let Err(problem) = only_ours(path, &file.metadata()?) {
        tracing::warn!("the settings are not used: {problem}");
        return Ok(None);
    }
    let text = std::io::read_to_string(file).context(format!("unable to read '{shown}'"))?;
    Ok(Some(text))
}

fn flatten(key: &mut Vec<String>, table: Table, found: &mut Vec<(Vec<String>, Value)>) {
    for (name, value) in table {
        key.push(name);
        match value {
            Value::Table(table) => flatten(key, table, found),
            value => found.push((key.clone(), value)),
        }
        key.pop();
    }
}

fn bytes_of(text: &str) -> Result<usize> {
    let bytes = keepwell_model::size::parse(text).map_err(|problem| anyhow!("{problem}"))?;
    match usize::try_from(bytes) {
        Ok(bytes) if (1 << 20..=4 << 30).contains(&bytes) => Ok(bytes),
        _ => bail!("'{text}' is not between 1MiB and 4GiB"),
    }
}

/// A value of an option as it would be given on the command line.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}

fn check(key: &[String], value: &Value) -> Result<()> {
    let key: Vec<&str> = key.iter().map(String::as_str).collect();
    let is_text = |value: &Value| match value.as_str() {
        Some(text) if !text.is_empty() => Ok(()),
        _ => Err(anyhow!("{value} is no text")),
    };
    match &key[..] {
        ["policy" | "output-format"] | ["archive-types", _] => is_text(value),
        ["limits", "memory"] | ["plugins", _, "limits", "memory"] => {
            is_text(value)?;
            bytes_of(value.as_str().unwrap_or_default()).map(|_| ())
        }
        ["limits", "call-seconds"] | ["plugins", _, "limits", "call-seconds"] => {
            match value.as_integer() {
                Some(1..=86_400) => Ok(()),
                _ => bail!("{value} is no whole number from 1 to 86400"),
            }
        }
        ["plugins", _, "options", _] => {
            let is_plain = |value: &Value| {
                matches!(value, Value::String(_) | Value::Integer(_) | Value::Boolean(_))
            };
            match value {
                Value::Array(values) if values.iter().all(is_plain) => Ok(()),
                value if is_plain(value) => Ok(()),
                _ => bail!("{value} is no value of an option"),
            }
        }
        ["plugins", _, "grants", grant] => check_grant(grant, value),
        _ => bail!("there is no such setting"),
    }
}

fn check_grant(grant: &str, value: &Value) -> Result<()> {
    match (grant, value) {
        ("read" | "run" | "environment" | "http", Value::Array(values)) => {
            let wrong = values.iter().find(|value| {
                let text = value.as_str().unwrap_or_default();
                let is_right = match grant {
                    "read" => text.starts_with('/'),
                    "http" => web_place(text).is_some(),
                    _ => true,
                };
                text.is_empty() || text == "*" || !is_right
            });
            match (wrong, grant) {
                (None, _) => Ok(()),
                (Some(value), "read") => bail!("{value} is no absolute path"),
                (Some(value), "http") => bail!("{value} is neither HOST nor HOST:PORT"),
                (Some(value), _) => bail!("{value} is no name"),
            }
        }
        ("read" | "run" | "environment" | "http", _) => bail!("{value} is no list of texts"),
        ("clock" | "random", Value::Boolean(_)) => Ok(()),
        ("clock" | "random", _) => bail!("{value} is neither true nor false"),
        ("scratch", Value::String(size)) => match keepwell_model::size::parse(size) {
            Ok(_) => Ok(()),
            Err(problem) => bail!("{problem}"),
        },
        ("scratch", _) => bail!("{value} is no size such as '1GiB'"),
        _ => bail!(
            "there is no such grant: use read, run, environment, http, clock, random or scratch"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(files: &[&str]) -> Result<Config> {
        let mut config = Config::default();
        for (number, text) in files.iter().enumerate() {
            config.add(Path::new(&format!("/{number}")), text)?;
        }
        Ok(config)
    }

    #[test]
    fn the_users_goes_over_the_systems() {
        let system = "policy = 'gfs'\n[limits]\nmemory = '64MiB'\ncall-seconds = 3\n";
        let user = "policy = 'mine'\n[plugins.pxar.options]\nexclude = ['*.o', 'x']\nno-fifos = true\n\
                    [archive-types]\npxar = 'other'\n";
        let config = config(&[system, user]).unwrap();
        assert_eq!((config.policy(), config.plugin_for("pxar")), ("mine", Some("other")));
        assert_eq!(config.plugin_for("img"), None);
        let limits = config.limits();
        assert_eq!(limits.memory_bytes_max, 64 << 20);
        assert_eq!(limits.call_time_max, Duration::from_secs(3));
        let options: Vec<_> = config.options().map(|set| (set.to_string(), set.values)).collect();
        let expected = [("exclude", vec!["*.o", "x"]), ("no-fifos", vec!["true"])].map(|(k, v)| {
            (format!("'/1': plugins.pxar.options.{k}"), v.into_iter().map(String::from).collect())
        });
        assert_eq!(options, expected);
        let all = config.all();
        let origin = |key: &str| {
            all.iter().find(|(known, ..)| known == key).map(|(_, _, origin)| origin.to_string())
        };
        assert_eq!(origin("limits.memory").as_deref(), Some("/0"));
        assert_eq!(origin("policy").as_deref(), Some("/1"));
    }

    #[test]
    fn plugins_have_grants_and_limits_of_their_own() {
        let text = "limits.call-seconds = 3\n[plugins.x]\nlimits.memory = '64MiB'\n\
                    [plugins.x.grants]\nread = ['/srv']\nrun = ['a', 'b']\nclock = true\n\
                    random = false\nscratch = '1KiB'\nhttp = ['h:1']\n";
        let config = config(&[text]).unwrap();
        let run = |program: &str| Capability::Run(program.into());
        let read = Capability::Read("/srv".into());
        let http = Capability::Http("h:1".into());
        let expected =
            [read, run("a"), run("b"), http, Capability::Clock, Capability::Scratch(1024)];
        assert_eq!(config.grants_of("x"), expected);
        assert!(config.grants_of("y").is_empty());
        let (x, y) = (config.limits_of("x"), config.limits_of("y"));
        assert_eq!((x.memory_bytes_max, x.call_time_max), (64 << 20, Duration::from_secs(3)));
        assert_eq!(y.memory_bytes_max, Limits::default().memory_bytes_max);
        assert_eq!(config.plugins(), BTreeSet::from(["x"]));
    }

    #[test]
    fn mistakes_are_told_with_file_and_key() {
        for (text, told) in [
            ("policy = 3", "'/0': policy: 3 is no text"),
            ("a.b = 1", "'/0': a.b: there is no such setting"),
            ("\npolicy =", "'/0', line 2: "),
            ("limits.memory = '1KiB'", "not between 1MiB and 4GiB"),
            ("limits.memory = 'much'", "limits.memory: "),
            ("limits.call-seconds = 0", "from 1 to 86400"),
            ("plugins.x.options.y = 1.5", "no value of an option"),
            ("plugins.x.options.y = [[1]]", "no value of an option"),
            ("plugins.x.other = 1", "no such setting"),
            ("plugins.x.grants.read = ['etc']", "no absolute path"),
            ("plugins.x.grants.run = 'sh'", "no list of texts"),
            ("plugins.x.grants.http = ['https://a/']", "neither HOST nor HOST:PORT"),
            ("plugins.x.grants.clock = 1", "neither true nor false"),
            ("plugins.x.grants.scratch = 'much'", "plugins.x.grants.scratch: "),
            ("plugins.x.grants.all = true", "no such grant"),
            ("plugins.x.limits.memory = '1'", "not between 1MiB and 4GiB"),
        ] {
            let problem = config(&[text]).err().unwrap().to_string();
            assert!(problem.contains(told), "{text}: {problem}");
        }
    }
}
