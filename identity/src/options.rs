//! What both programs can be told about the source of their certificates.

use std::{env, ffi::OsString, path::PathBuf};

use crate::Source;

/// The variable that SPIFFE names for the Workload API; looked at only with `--certificates spiffe`.
const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Where certificates come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Kind {
    /// From the controller's own authority
    #[default]
    Builtin,
    /// From files that somebody else renews
    Files,
    /// From a SPIFFE Workload API
    Spiffe,
}

/// Why the options make no sense together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionsError {
    /// Something is missing.
    #[error("--certificates {kind} needs {missing}")]
    Missing {
        /// The source.
        kind: &'static str,
        /// The options.
        missing: String,
    },
    /// Something would not be used.
    #[error("{option} is for --certificates {of}, and this is --certificates {kind}: take one of them away")]
    Unused {
        /// The option.
        option: &'static str,
        /// The source it is for.
        of: &'static str,
        /// The source that was chosen.
        kind: &'static str,
    },
    /// Not the address of a unix socket.
    #[error("{from} is {text:?}; write unix:// and an absolute path, as in unix:///run/spire/agent.sock")]
    Endpoint {
        /// Option or variable.
        from: &'static str,
        /// What it says.
        text: String,
    },
}

/// Where our certificate, its key and the authorities to trust come from.
#[derive(Clone, PartialEq, Eq, Debug, Default, clap::Args)]
#[group(id = "certificate_source")]
pub struct Options {
    /// Where certificates come from: the controller's own authority, files, or a SPIFFE Workload API
    #[arg(long, value_enum, env = "BULKHEAD_CERTIFICATES", default_value_t)]
    pub certificates: Kind,
    /// With --certificates files: PEM file of our certificate chain, leaf first; taken anew when it changes
    #[arg(long, value_name = "FILE", env = "BULKHEAD_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// With --certificates files: PEM file of the private key
    #[arg(long, value_name = "FILE", env = "BULKHEAD_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// With --certificates files: PEM file of the authorities the other end's certificate must come from
    #[arg(long, value_name = "FILE", env = "BULKHEAD_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
    /// With --certificates spiffe: socket of the Workload API, as in <unix:///run/spire/agent.sock>; without it that of the
    /// environment variable `SPIFFE_ENDPOINT_SOCKET`
    #[arg(long, value_name = "unix://PATH")]
    pub spiffe_endpoint_socket: Option<String>,
}

impl Kind {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Files => "files",
            Self::Spiffe => "spiffe",
        }
    }
}

impl Options {
    /// The source; `None` = the controller's own authority. `builtin` are options of that one, and whether they are set.
    ///
    /// # Errors
    /// When an option is missing, or one is given that would not be used.
    pub fn source(&self, builtin: &[(&'static str, bool)]) -> Result<Option<Source>, OptionsError> {
        self.choose(builtin, env::var_os(ENDPOINT_VARIABLE))
    }

    fn choose(
        &self,
        builtin: &[(&'static str, bool)],
        variable: Option<OsString>,
    ) -> Result<Option<Source>, OptionsError> {
        let files = [
            ("--tls-cert", &self.tls_cert),
            ("--tls-key", &self.tls_key),
            ("--tls-ca", &self.tls_ca),
        ];
        let given = |of: Kind| -> Option<&'static str> {
            match of {
                Kind::Builtin => builtin.iter().find(|(_, set)| *set).map(|(option, _)| *option),
                Kind::Files => files.iter().find(|(_, path)| path.is_some()).map(|(option, _)| *option),
                Kind::Spiffe => self
                    .spiffe_endpoint_socket
                    .is_some()
                    .then_some("--spiffe-endpoint-socket"),
            }
        };
        let others = [Kind::Builtin, Kind::Files, Kind::Spiffe];
        for of in others.into_iter().filter(|of| *of != self.certificates) {
            if let Some(option) = given(of) {
                let (of, kind) = (of.name(), self.certificates.name());
                return Err(OptionsError::Unused { option, of, kind });
            }
        }
        match self.certificates {
            Kind::Builtin => Ok(None),
            Kind::Spiffe => self.workload(variable).map(Some),
            Kind::Files => {
                if let (Some(certificate), Some(key), Some(authorities)) = (&self.tls_cert, &self.tls_key, &self.tls_ca)
                {
                    return Ok(Some(Source::Files {
                        certificate: certificate.clone(),
                        key: key.clone(),
                        authorities: authorities.clone(),
                    }));
                }
                let missing = files
                    .iter()
                    .filter(|(_, path)| path.is_none())
                    .map(|(option, _)| *option);
                Err(OptionsError::Missing {
                    kind: Kind::Files.name(),
                    missing: missing.collect::<Vec<_>>().join(", "),
                })
            }
        }
    }

    /// Only unix sockets: a Workload API knows by them who asks.
    fn workload(&self, variable: Option<OsString>) -> Result<Source, OptionsError> {
        let option = self.spiffe_endpoint_socket.clone();
        let option = option.map(|text| ("--spiffe-endpoint-socket", text));
        let variable = || variable.map(|text| (ENDPOINT_VARIABLE, text.to_string_lossy().into_owned()));
        let Some((from, text)) = option.or_else(variable) else {
            return Err(OptionsError::Missing {
                kind: Kind::Spiffe.name(),
                missing: format!("--spiffe-endpoint-socket, or the environment variable {ENDPOINT_VARIABLE}"),
            });
        };
        let path = text
            .strip_prefix("unix:")
            .map(|path| path.strip_prefix("//").unwrap_or(path));
        match path.filter(|path| path.starts_with('/') && path.len() > 1) {
            Some(path) => Ok(Source::Workload(path.into())),
            None => Err(OptionsError::Endpoint { from, text }),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        options: Options,
    }

    fn source(arguments: &str, builtin: bool, variable: Option<&str>) -> Result<Option<Source>, String> {
        let arguments = ["program"].into_iter().chain(arguments.split_whitespace());
        let program = Program::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let chosen = program
            .options
            .choose(&[("--ca-dir", builtin)], variable.map(Into::into));
        chosen.map_err(|error| error.to_string())
    }

    #[test]
    fn each_source_by_its_options() {
        let workload = |path: &str| Ok(Some(Source::Workload(path.into())));
        assert_eq!(source("", true, None), Ok(None));
        // The variable that some operators set on every pod changes nothing by itself.
        assert_eq!(source("", false, Some("unix:///run/a.sock")), Ok(None));
        let spiffe = "--certificates spiffe";
        assert_eq!(
            source(spiffe, false, Some("unix:///run/a.sock")),
            workload("/run/a.sock")
        );
        let named = format!("{spiffe} --spiffe-endpoint-socket unix:/run/b.sock");
        assert_eq!(
            source(&named, false, Some("unix:///run/a.sock")),
            workload("/run/b.sock")
        );
        let files = "--certificates files --tls-cert /c --tls-key /k --tls-ca /a";
        assert!(matches!(source(files, false, None), Ok(Some(Source::Files { .. }))));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (arguments, builtin, reason) in [
            ("--certificates files --tls-cert /c", false, "needs --tls-key, --tls-ca"),
            (
                "--certificates spiffe",
                false,
                "needs --spiffe-endpoint-socket, or the environment variable",
            ),
            (
                "--tls-ca /a",
                false,
                "--tls-ca is for --certificates files, and this is --certificates builtin",
            ),
            (
                "--certificates spiffe --tls-key /k",
                false,
                "--tls-key is for --certificates files",
            ),
            (
                "--spiffe-endpoint-socket unix:///a",
                false,
                "--spiffe-endpoint-socket is for --certificates spiffe",
            ),
            (
                "--certificates spiffe --spiffe-endpoint-socket unix:///a",
                true,
                "--ca-dir is for --certificates builtin",
            ),
            (
                "--certificates spiffe --spiffe-endpoint-socket tcp://127.0.0.1:1",
                false,
                "write unix:// and an absolute path",
            ),
            (
                "--certificates spiffe --spiffe-endpoint-socket unix://run/a",
                false,
                "write unix:// and an absolute path",
            ),
        ] {
            let error = source(arguments, builtin, None);
            assert!(
                error.as_ref().is_err_and(|error| error.contains(reason)),
                "{arguments}: {error:?}"
            );
        }
    }
}
