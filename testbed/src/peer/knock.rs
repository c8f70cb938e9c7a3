//! The newcomer: tries to connect from its first moment on, until it is let in or its time is over.

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Options, probe::outcome_of, say_json};
use crate::traffic::{KnockReport, Outcome};

/// Shorter than the second after which a lost SYN is sent again: a packet that was dropped once is seen.
const ANSWER_MAX: Duration = Duration::from_millis(900);
const PAUSE: Duration = Duration::from_millis(20);

/// `knock --to ADDRESS:PORT [--within-ms N]`: prints how often nobody answered and how often somebody did.
///
/// # Errors
/// When standard output is gone.
pub fn knock(options: &Options) -> Result<()> {
    let target: SocketAddr = options.target()?;
    let end = Instant::now() + Duration::from_millis(options.or("within-ms", 30_000)?);
    let mut report = KnockReport::default();
    while !report.open && Instant::now() < end {
        let outcome = match TcpStream::connect_timeout(&target, ANSWER_MAX) {
            Ok(_) => Outcome::Open,
            Err(error) => outcome_of(&error),
        };
        match outcome {
            Outcome::Open => report.open = true,
            Outcome::Refused => report.refused += 1,
            Outcome::Timeout => report.timeouts += 1,
            Outcome::Unreachable => report.unreachable += 1,
        }
        if !report.open {
            thread::sleep(PAUSE);
        }
    }
    say_json(&report)
}
