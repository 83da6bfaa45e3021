//! For plugins that print results (world `keepwell:formatter/output-formatter`).

use crate::bindings::formatter as bindings;
use crate::{Failure, OptionValue, options};
use serde::de::DeserializeOwned;

pub use bindings::exports::keepwell::formatter::formatter::{
    Alignment, Column, Document, Environment, Layout, Rendering,
};

pub use bindings::exports::keepwell::formatter::about::Info;

/// What the plugin says of itself.
pub trait Plugin {
    /// Must give the same answer each time; the host caches it.
    fn describe() -> Info;
}

/// An output formatter: a pure function from a document to bytes.
pub trait Formatter {
    /// what its options are read into, see [`crate::options`]
    type Options: DeserializeOwned;

    /// What is printed.
    fn render(
        document: Document,
        environment: Environment,
        options: Self::Options,
    ) -> Result<Vec<u8>, Failure>;
}

#[doc(hidden)]
pub struct Adapter<P>(std::marker::PhantomData<P>);

impl<P: Plugin> bindings::exports::keepwell::formatter::about::Guest for Adapter<P> {
    fn describe() -> Info {
        crate::install_panic_hook();
        P::describe()
    }
}

impl<P: Formatter> bindings::exports::keepwell::formatter::formatter::Guest for Adapter<P> {
    fn render(
        document: Document,
        environment: Environment,
        options: Vec<OptionValue>,
    ) -> Result<Vec<u8>, Failure> {
        crate::install_panic_hook();
        P::render(document, environment, options::parse(&options)?)
    }
}

/// Makes the component of a type that implements `Plugin` and `formatter::Formatter`.
#[macro_export]
macro_rules! export_output_formatter {
    ($plugin:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::formatter::Adapter<$plugin>;
            $crate::bindings::formatter::export_bindings!(Exported with_types_in $crate::bindings::formatter);
        };
    };
}
