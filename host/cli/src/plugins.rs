//! The plugins at hand, and which of them serves what.

pub(crate) mod places;
mod web;

use crate::args;
use crate::config::Config;
use crate::terminal::cache_dir;
use anyhow::{Context, Result, anyhow, bail};
use keepwell_engine::plugin::{ArchiveType, OptionKind, OptionSpec, OriginKind};
pub(crate) use keepwell_wasm::Limits;
use keepwell_wasm::{CodeCache, Plugin, PluginInfo, Rights, Runtime};
use places::{Notes, Place, Trust};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use web::PluginWeb;

/// A plugin and what it says of itself.
pub(crate) struct Loaded {
    pub(crate) plugin: Plugin,
    pub(crate) info: PluginInfo,
    /// Its options, with the defaults that the settings say.
    pub(crate) options: Vec<OptionSpec>,
    /// none of what is built in
    pub(crate) file: Option<PathBuf>,
}

impl Loaded {
    fn new(plugin: Plugin, info: PluginInfo, file: Option<PathBuf>) -> Self {
        let options = info.options.clone();
        Self { plugin, info, options, file }
    }

    fn of_file(plugin: Plugin, file: &Path) -> Result<Self> {
        let is_none = || format!("'{}' is no plugin", file.display());
        let info = plugin.info().with_context(is_none)?;
        info.options.iter().try_for_each(args::check_defaults).with_context(is_none)?;
        Ok(Self::new(plugin, info, Some(file.to_owned())))
    }

    /// What goes wrong with a plugin from outside tells its name.
    pub(crate) fn blamed<T>(&self, outcome: Result<T>) -> Result<T> {
        let name = format!("plugin '{}'", self.info.name);
        match outcome {
            Err(error) if self.file.is_some() && !format!("{error:#}").contains(&name) => {
                Err(error.context(name))
            }
            other => other,
        }
    }

    fn serves(&self, extension: &str) -> Option<&ArchiveType> {
        self.info.archive_types.iter().find(|known| known.extension == extension)
    }

    /// Whether archives of this extension are made of directories.
    pub(crate) fn makes_directories(&self, extension: &str) -> bool {
        self.serves(extension).is_some_and(|kind| kind.origin == OriginKind::Directory)
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
    /// of the settings, with these plugins
    mistake: Option<anyhow::Error>,
}

impl Plugins {
    pub(crate) fn load() -> Result<Self> {
        let config = Config::load()?;
        let cache = cache_dir().and_then(|dir| CodeCache::open(&dir));
        let runtime = Runtime::new(cache, config.limits(), Some(Arc::new(PluginWeb::new())))?;
        let (all, refused) = (Vec::new(), Vec::new());
        let mut plugins = Self { runtime, all, refused, config, mistake: None };
        for place in places::all() {
            plugins.load_place(&place)?;
        }
        for (package, bytes) in keepwell_builtin::COMPONENTS {
            let name = package.strip_prefix("plugin-").unwrap_or(package);
            let plugin = plugins.runtime.plugin(name, bytes);
            plugins.all.push(Loaded::new(plugin.clone(), plugin.info()?, None));
        }
        plugins.mistake = plugins.configure().err();
        Ok(plugins)
    }

    /// Gives a plugin what the settings say.
    pub(crate) fn allow(&self, loaded: &Loaded) {
        let Loaded { plugin, info, .. } = loaded;
        let rights = Rights::of(&info.capabilities, &self.config.grants_of(&info.name));
        plugin.allow(&info.name, rights, self.config.limits_of(&info.name));
    }

    /// Fails where the settings and the plugins do not agree. What shows and removes plugins goes on.
    pub(crate) fn check_settings(&mut self) -> Result<()> {
        self.mistake.take().map_or(Ok(()), Err)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// What the settings say of options counts where nothing is given.
    fn configure(&mut self) -> Result<()> {
        self.all.iter().for_each(|loaded| self.allow(loaded));
        for name in self.config.plugins() {
            if !self.all.iter().any(|loaded| loaded.info.name == name) {
                tracing::warn!("the settings are about plugin '{name}', and there is none");
            }
        }
        for setting in self.config.options() {
            let mut named =
                self.all.iter_mut().filter(|loaded| loaded.info.name == setting.plugin).peekable();
            if named.peek().is_none() {
                continue;
            }
            let options = named.flat_map(|loaded| &mut loaded.options);
            let mut found = options.filter(|spec| spec.name == setting.option).peekable();
            if found.peek().is_none() {
                bail!("{setting}: the plugin has no such option");
            }
            for spec in found {
                if setting.values.len() > 1 && !spec.repeatable {
                    bail!("{setting}: it takes one value");
                }
                let is_bool = |value: &String| value == "true" || value == "false";
                if spec.kind == OptionKind::Flag && !setting.values.iter().all(is_bool) {
                    bail!("{setting}: it is true or false");
                }
                spec.defaults = setting.values.clone();
                args::check_defaults(spec).map_err(|problem| anyhow!("{setting}: {problem}"))?;
            }
        }
        for (extension, wanted) in self.config.archive_types() {
            let mut all = self.all.iter();
            if !all.any(|loaded| loaded.info.name == wanted && loaded.serves(extension).is_some()) {
                tracing::warn!(
                    "the settings want plugin '{wanted}' for '.{extension}', and none of that name serves it"
                );
            }
        }
        Ok(())
    }

    fn load_place(&mut self, place: &Place) -> Result<()> {
        let files = match place.files() {
            Err(error) if place.trust != Trust::Named => {
                tracing::warn!("{error:#}");
                return Ok(());
            }
            other => other?,
        };
        let notes = match files.is_empty() {
            true => Ok(Notes::default()),
            false => place.notes(),
        };
        for file in files {
            // Nothing of it runs before it is known to be the one that was confirmed.
            let loaded = self.runtime.plugin_file(&file).map_err(Into::into).and_then(|plugin| {
                place.check(&file, plugin.sha256(), &notes)?;
                Loaded::of_file(plugin, &file)
            });
            match loaded {
                Ok(loaded) => self.all.push(loaded),
                Err(problem) => self.refuse(file, problem)?,
            }
        }
        Ok(())
    }

    /// The plugins that declare an option which a command has itself are not used.
    pub(crate) fn refuse_clashing(&mut self, verb: &str, option: &str) -> Result<()> {
        let declares =
            |loaded: &mut Loaded| loaded.info.options.iter().any(|known| known.name == option);
        let clashing: Vec<Loaded> = self.all.extract_if(.., declares).collect();
        if clashing.is_empty() {
            bail!("`{verb}` has --{option} twice");
        }
        for Loaded { file, .. } in clashing {
            let file = file.unwrap_or_default();
            let problem = format!("it declares --{option}, which `{verb}` has itself");
            self.refuse(file, anyhow!(problem))?;
        }
        Ok(())
    }

    /// What is wrong in a place that was named ends the run; elsewhere it is told, and the rest goes on.
    fn refuse(&mut self, file: PathBuf, problem: anyhow::Error) -> Result<()> {
        if places::is_named(&file) {
            return Err(problem.context(format!(
                "plugin '{}': remove it, or change KEEPWELL_PLUGIN_PATH",
                file.display()
            )));
        }
        let problem = format!("{problem:#}");
        tracing::warn!("plugin '{}' is not used: {problem}", file.display());
        self.refused.push((file, problem));
        Ok(())
    }

    /// A component that is not among them.
    pub(crate) fn load_file(&self, file: &Path) -> Result<Loaded> {
        Loaded::of_file(self.runtime.plugin_file(file)?, file)
    }

    /// With one more, that comes before the others. Fails where the settings do not agree with it.
    pub(crate) fn with_first(mut self, loaded: Loaded) -> Result<Self> {
        self.all.insert(0, loaded);
        self.configure()?;
        Ok(self)
    }

    /// Files that are not used, and why.
    pub(crate) fn refused(&self) -> &[(PathBuf, String)] {
        &self.refused
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Loaded> {
        self.all.iter()
    }

    /// Of those that serve an extension in a role: the one that the settings name, or else the first.
    fn serving(&self, extension: &str, role: fn(&PluginInfo) -> bool) -> Option<&Loaded> {
        let serves = |loaded: &&Loaded| role(&loaded.info) && loaded.serves(extension).is_some();
        let wanted = self.config.plugin_for(extension);
        let is_wanted = |loaded: &&Loaded| wanted == Some(loaded.info.name.as_str());
        let all = || self.all.iter().filter(serves);
        all().find(is_wanted).or_else(|| all().next())
    }

    /// The source for archives of this extension.
    pub(crate) fn source_for(&self, extension: &str) -> Option<(&Loaded, &ArchiveType)> {
        // Another one would make other archives than those that are wanted.
        let wanted = self.config.plugin_for(extension);
        if wanted.is_some_and(|wanted| self.all.iter().all(|known| known.info.name != wanted)) {
            return None;
        }
        let loaded = self.serving(extension, |info| info.is_source)?;
        Some((loaded, loaded.serves(extension)?))
    }

    /// The reader of archives of this extension.
    pub(crate) fn reader_for(&self, extension: &str) -> Option<&Loaded> {
        self.serving(extension, |info| info.is_reader)
    }

    /// All types of archives.
    pub(crate) fn types(&self) -> Types {
        Types(self.all.iter().flat_map(|loaded| &loaded.info.archive_types).cloned().collect())
    }

    /// Extensions that can be backed up.
    pub(crate) fn extensions(&self) -> Vec<&str> {
        let sources = self.all.iter().filter(|loaded| loaded.info.is_source);
        let types = sources.flat_map(|loaded| &loaded.info.archive_types);
        let mut extensions: Vec<&str> = Vec::new();
        for archive_type in types {
            if !extensions.contains(&archive_type.extension.as_str()) {
                extensions.push(&archive_type.extension);
            }
        }
        extensions
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
            for spec in &loaded.options {
                if !options.iter().any(|(_, known)| known.name == spec.name) {
                    options.push((&loaded.info.name, spec));
                }
            }
        }
        options
    }
}
