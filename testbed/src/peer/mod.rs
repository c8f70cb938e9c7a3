//! The roles of `testbed-peer`: server, prober, load generator, newcomer, held connection, datagram stream, spoofer, sniffer.
//!
//! A role prints `ready` when it has begun, works until its standard input ends, then prints its report as JSON.

mod forge;
mod knock;
mod load;
mod ping;
mod probe;
mod serve;
mod stream;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::SocketAddr,
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, bail};

pub use forge::{sniff, spoof};
pub use knock::knock;
pub use load::load;
pub use probe::probe;
pub use serve::serve;
pub use stream::{hold, stream};

/// Options of a role: `--name value`, repeated ones keep their order.
#[derive(Debug, Default)]
pub struct Options(BTreeMap<String, Vec<String>>);

impl Options {
    /// Reads `--name value` pairs.
    ///
    /// # Errors
    /// When something is not such a pair.
    pub fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let name = argument
                .strip_prefix("--")
                .with_context(|| format!("{argument}: expected --name value"))?;
            let value = rest.next().with_context(|| format!("{argument} needs a value"))?;
            options.0.entry(name.to_owned()).or_default().push(value.clone());
        }
        Ok(options)
    }

    /// Every value of an option.
    pub fn all<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(&self, name: &str) -> Result<Vec<T>> {
        let values = self.0.get(name).map(Vec::as_slice).unwrap_or_default();
        values
            .iter()
            .map(|value| value.parse().with_context(|| format!("--{name} {value}")))
            .collect()
    }

    /// The value of an option, or a default.
    pub fn or<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(&self, name: &str, default: T) -> Result<T> {
        Ok(self.all(name)?.pop().unwrap_or(default))
    }

    /// The value of an option that must be given.
    pub fn required<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(&self, name: &str) -> Result<T> {
        match self.all(name)?.pop() {
            Some(value) => Ok(value),
            None => bail!("--{name} is missing"),
        }
    }

    /// `--to ADDRESS:PORT`.
    pub fn target(&self) -> Result<SocketAddr> {
        self.required("to")
    }
}

/// True when standard input has ended: the tester wants the report.
static ENDED: AtomicBool = AtomicBool::new(false);

/// Watches standard input.
fn watch_input() {
    thread::spawn(|| {
        let mut rest = Vec::new();
        // An error of standard input is an end too.
        drop(std::io::stdin().read_to_end(&mut rest));
        ENDED.store(true, Ordering::Release);
    });
}

fn ended() -> bool {
    ENDED.load(Ordering::Acquire)
}

/// Prints one line at once.
fn say(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")
        .and_then(|()| output.flush())
        .context("writing to standard output")
}

fn say_json(value: &impl serde::Serialize) -> Result<()> {
    say(&serde_json::to_string(value).context("writing JSON")?)
}
