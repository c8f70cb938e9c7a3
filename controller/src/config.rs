//! What the controller can be told, by flags and environment.

use std::{path::PathBuf, str::FromStr};

use clap::{Parser, ValueEnum};

/// Watches manifests, compiles them and sends every node its part.
#[derive(Clone, PartialEq, Eq, Debug, Parser)]
#[command(name = "bulkhead-controller", version)]
pub struct Config {
    /// Folder of manifests: YAML or JSON as kubectl prints them, subfolders included.
    #[arg(long, value_name = "DIR", env = "BULKHEAD_MANIFESTS")]
    pub manifests: PathBuf,
    /// Where nodes and the command line connect.
    #[arg(
        long,
        value_name = "unix:PATH",
        env = "BULKHEAD_LISTEN",
        default_value = "unix:/run/bulkhead/controller.sock"
    )]
    pub listen: Listen,
    /// TCP with mutual TLS.
    #[command(flatten)]
    pub tls: crate::tls::options::Options,
    /// Form of the log on standard error.
    #[arg(long, value_enum, env = "BULKHEAD_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to log: a level, or directives such as `info,bulkhead_controller=debug`.
    #[arg(long, env = "BULKHEAD_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// An address to listen on. TCP with mutual TLS comes with Kubernetes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            _ => Err("expected unix: and an absolute path, as in unix:/run/bulkhead/controller.sock".to_owned()),
        }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_unix_sockets() {
        assert_eq!("unix:/run/a.sock".parse(), Ok(Listen::Unix("/run/a.sock".into())));
        for wrong in ["unix:a.sock", "tcp:1.2.3.4:5", "/run/a.sock", ""] {
            assert!(wrong.parse::<Listen>().unwrap_err().contains("unix:"), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Config::command().debug_assert();
        let config = Config::parse_from(["bulkhead-controller", "--manifests", "/m"]);
        assert_eq!(config.listen, Listen::Unix("/run/bulkhead/controller.sock".into()));
    }
}
