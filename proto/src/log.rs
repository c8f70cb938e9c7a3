//! The log of the long-lived programs, which both set up alike: form, level, and how the level is changed while they run.

use std::{
    fmt,
    io::{IsTerminal as _, stderr},
    str::FromStr,
    sync::Arc,
};

use tracing_subscriber::{EnvFilter, reload};

/// Changes what is logged: a level, or directives such as `info,bulkhead_controller=debug`. The error is for whoever asked.
pub type Level = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Form of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is no form of a log: text or json")),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Logs to standard error from now on.
///
/// # Errors
/// When the directives cannot be read: what was expected instead.
pub fn init(directives: &str, format: Format) -> Result<Level, String> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(directives)?)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr);
    Ok(match format {
        Format::Text => {
            let log = log.with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            level(handle)
        }
        Format::Json => {
            let log = log.json().with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            level(handle)
        }
    })
}

fn level<S: 'static>(handle: reload::Handle<EnvFilter, S>) -> Level {
    Arc::new(move |directives| {
        handle.reload(filter(directives)?).map_err(|error| error.to_string())?;
        tracing::warn!(directives, "log level changed");
        Ok(())
    })
}

fn filter(directives: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(directives).map_err(|error| {
        format!("{directives:?}: {error}; expected a level or directives such as info,bulkhead_controller=debug")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_directives_are_named() {
        let error = filter("info,=x=").unwrap_err();
        assert!(
            error.contains("info,=x=") && error.contains("expected a level"),
            "{error}"
        );
        assert_eq!("json".parse::<Format>().unwrap().to_string(), "json");
        assert!("xml".parse::<Format>().is_err());
    }
}
