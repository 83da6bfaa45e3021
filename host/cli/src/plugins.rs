//! The plugins at hand, and which of them serves what.

pub(crate) mod places;

use crate::config::Config;
use crate::terminal::cache_dir;
use anyhow::{Context, Result, anyhow, bail};
use keepwell_engine::plugin::{ArchiveType, OptionKind, OptionSpec, OriginKind};
pub(crate) use keepwell_wasm::Limits;
use keepwell_wasm::{CodeCache, Plugin, PluginInfo, Runtime};
use places::{Place, Trust};
use std::path::{Path, PathBuf};

/// A plugin and what it says of itself.
pub(crate) struct Loaded {
    pub(crate) plugin: Plugin,
    pub(crate) info: PluginInfo,
    /// none of what is built in
    pub(crate) file: Option<PathBuf>,
}

impl Loaded {
    fn of_file(plugin: Plugin, file: &Path) -> Result<Self> {
        let info = plugin.info().with_context(|| format!("'{}' is no plugin", file.display()))?;
        Ok(Self { plugin, info, file: Some(file.to_owned()) })
    }

    /// Whether archives of this extension are made of directories.
    pub(crate) fn makes_directories(&self, extension: &str) -> bool {
        let mut types = self.info.archive_types.iter();
        let found = types.find(|archive_type| archive_type.extension == extension);
        found.is_some_and(|archive_type| archive_type.origin == OriginKind::Directory)
    }
}

/// What is known of archives without asking a plugin.
#[derive(Clone)]
pub(crate) struct Types(Vec<ArchiveType>);

impl Types {
    /// What users call the archive that `root.mpxar` is a part of; others as they are.
    pub(crate) fn name_of_whole(&self, name: &str) -> String {
        let split = name.rsplit_once('.');
        let whole = split.and_then(|(label, part)| Some((label, self.kept_in_parts(part)?)));
        whole.map_or(name.to_owned(), |(label, whole)| format!("{label}.{}", whole.extension))
    }

    /// The type of archive of which files with this extension are parts.
    pub(crate) fn kept_in_parts(&self, part: &str) -> Option<&ArchiveType> {
        self.0.iter().find(|archive_type| archive_type.parts.iter().any(|known| known == part))
    }
}

/// All plugins: those given by `KEEPWELL_PLUGIN_PATH` first, then those that were installed, then the
/// built-in ones.
pub(crate) struct Plugins {
    runtime: Runtime,
    all: Vec<Loaded>,
    refused: Vec<(PathBuf, String)>,
    config: Config,
}

impl Plugins {
    pub(crate) fn load() -> Result<Self> {
        let config = Config::load()?;
        let cache = cache_dir().and_then(|dir| CodeCache::open(&dir));
        let runtime = Runtime::new(cache, config.limits())?;
        let mut plugins = Self { runtime, all: Vec::new(), refused: Vec::new(), config };
        for place in places::all() {
            plugins.load_place(&place)?;
        }
        for (package, bytes) in keepwell_builtin::COMPONENTS {
            let name = package.strip_prefix("plugin-").unwrap_or(package);
            let plugin = plugins.runtime.plugin(name, bytes);
            plugins.all.push(Loaded { info: plugin.info()?, plugin, file: None });
        }
        plugins.configure()?;
        Ok(plugins)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// What the settings say of options counts where nothing is given.
    fn configure(&mut self) -> Result<()> {
        for Loaded { info, .. } in &mut self.all {
            for (name, values) in self.config.options_of(&info.name) {
                let found = info.options.iter_mut().find(|spec| spec.name == name);
                let spec = found.ok_or_else(|| {
                    anyhow!("plugin '{}' has no option '{name}' to be configured", info.name)
                })?;
                if values.len() > 1 && !spec.repeatable {
                    bail!("option '{name}' of plugin '{}' takes one value", info.name);
                }
                let is_bool = |value: &String| value == "true" || value == "false";
                if spec.kind == OptionKind::Flag && !values.iter().all(is_bool) {
                    bail!("option '{name}' of plugin '{}' is true or false", info.name);
                }
                spec.defaults = values;
            }
        }
        for (extension, wanted) in self.config.archive_types() {
            let serves = |loaded: &Loaded| {
                let mut types = loaded.info.archive_types.iter();
                loaded.info.name == wanted && types.any(|known| known.extension == extension)
            };
            if !self.all.iter().any(serves) {
                tracing::warn!(
                    "the settings want plugin '{wanted}' for '.{extension}', and there is none"
                );
            }
        }
        Ok(())
    }

    /// Whether a plugin is the one that the settings name for an extension, or they name none.
    fn is_wanted(&self, info: &PluginInfo, extension: &str) -> bool {
        self.config.plugin_for(extension).is_none_or(|wanted| wanted == info.name)
    }

    /// What is wrong in a place that was named ends the run; elsewhere it is told, and the rest goes on.
    fn load_place(&mut self, place: &Place) -> Result<()> {
        let files = match place.files() {
            Err(error) if place.trust != Trust::Named => {
                tracing::warn!("{error:#}");
                return Ok(());
            }
            other => other?,
        };
        for file in files {
            // Nothing of it runs before it is known to be the one that was confirmed.
            let loaded = self.read_file(&file).and_then(|plugin| {
                place.check(&file, plugin.sha256())?;
                Loaded::of_file(plugin, &file)
            });
            match loaded {
                Ok(loaded) => self.all.push(loaded),
                Err(error) if place.trust == Trust::Named => {
                    return Err(error.context("remove it, or change KEEPWELL_PLUGIN_PATH"));
                }
                Err(error) => {
                    let problem = format!("{error:#}");
                    tracing::warn!("plugin '{}' is not used: {problem}", file.display());
                    self.refused.push((file, problem));
                }
            }
        }
        Ok(())
    }

    /// A component that is not among them.
    pub(crate) fn load_file(&self, file: &Path) -> Result<Loaded> {
        Loaded::of_file(self.read_file(file)?, file)
    }

    fn read_file(&self, file: &Path) -> Result<Plugin> {
        let shown = file.display();
        let bytes =
            read_plugin(file).with_context(|| format!("unable to read plugin '{shown}'"))?;
        // Plugins live as long as the process.
        let bytes: &'static [u8] = bytes.leak();
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(self.runtime.plugin(&name, bytes))
    }

    /// With one more, that comes before the others.
    pub(crate) fn with_first(mut self, loaded: Loaded) -> Self {
        self.all.insert(0, loaded);
        self
    }

    /// Files that are not used, and why.
    pub(crate) fn refused(&self) -> &[(PathBuf, String)] {
        &self.refused
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Loaded> {
        self.all.iter()
    }

    /// The source for archives of this extension.
    pub(crate) fn source_for(&self, extension: &str) -> Option<(&Loaded, &ArchiveType)> {
        self.all.iter().filter(|loaded| loaded.info.is_source).find_map(|loaded| {
            if !self.is_wanted(&loaded.info, extension) {
                return None;
            }
            let mut types = loaded.info.archive_types.iter();
            Some((loaded, types.find(|archive_type| archive_type.extension == extension)?))
        })
    }

    /// The reader of archives of this extension.
    pub(crate) fn reader_for(&self, extension: &str) -> Option<&Loaded> {
        let serves = |loaded: &&Loaded| {
            let mut types = loaded.info.archive_types.iter();
            loaded.info.is_reader
                && self.is_wanted(&loaded.info, extension)
                && types.any(|archive_type| archive_type.extension == extension)
        };
        self.all.iter().find(serves)
    }

    /// All types of archives.
    pub(crate) fn types(&self) -> Types {
        Types(self.all.iter().flat_map(|loaded| &loaded.info.archive_types).cloned().collect())
    }

    /// Extensions that can be backed up.
    pub(crate) fn extensions(&self) -> Vec<&str> {
        let sources = self.all.iter().filter(|loaded| loaded.info.is_source);
        let extensions = sources.flat_map(|loaded| {
            let types = loaded.info.archive_types.iter().map(|known| known.extension.as_str());
            types.filter(|extension| self.is_wanted(&loaded.info, extension))
        });
        extensions.collect()
    }

    /// The retention policy called so.
    pub(crate) fn policy(&self, name: Option<&str>) -> Result<&Loaded> {
        let name = name.unwrap_or_else(|| self.config.policy());
        let known = || self.all.iter().filter(|loaded| loaded.info.is_retention);
        known().find(|loaded| loaded.info.name == name).ok_or_else(|| {
            let names: Vec<&str> = known().map(|loaded| loaded.info.name.as_str()).collect();
            anyhow!("there is no retention policy '{name}'; there is {}", names.join(", "))
        })
    }

    /// The formatter that makes this output format.
    pub(crate) fn formatter(&self, format: &str) -> Result<&Loaded> {
        let known = || self.all.iter().filter(|loaded| loaded.info.is_formatter);
        let found = known().find(|loaded| loaded.info.formats.iter().any(|known| known == format));
        found.ok_or_else(|| {
            let formats: Vec<&str> =
                known().flat_map(|loaded| &loaded.info.formats).map(String::as_str).collect();
            anyhow!("there is no output format '{format}'; use one of {}", formats.join(", "))
        })
    }

    /// Options of all plugins of a kind, each name once.
    pub(crate) fn options<'a>(
        &'a self,
        wanted: &'a dyn Fn(&PluginInfo) -> bool,
    ) -> Vec<(&'a str, &'a OptionSpec)> {
        let mut options: Vec<(&str, &OptionSpec)> = Vec::new();
        for loaded in self.all.iter().filter(|loaded| wanted(&loaded.info)) {
            for spec in &loaded.info.options {
                if !options.iter().any(|(_, known)| known.name == spec.name) {
                    options.push((&loaded.info.name, spec));
                }
            }
        }
        options
    }
}

/// Larger components are none.
const PLUGIN_BYTES_MAX: u64 = 256 << 20;

fn read_plugin(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    // Not opened before it is known to be a file: opening a pipe would wait.
    if !std::fs::metadata(path)?.is_file() {
        bail!("it is no regular file");
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(PLUGIN_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > PLUGIN_BYTES_MAX {
        bail!("it has more than 256 MiB");
    }
    Ok(bytes)
}
