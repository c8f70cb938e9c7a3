//! The demo: default deny on real traffic, shown in a terminal. Every line with a verdict comes from a flow record.

mod acts;
mod records;
mod screen;
mod shop;

use std::{io::Read, sync::atomic::Ordering, thread, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{process, sys};

use screen::Screen;

/// Shows the demo. With `keep`, everything goes on running until a signal ends it.
///
/// # Errors
/// When something cannot be started, or what is shown is not what should happen.
pub fn run(keep: bool) -> Result<()> {
    if !sys::is_root() {
        bail!("the demo makes network namespaces and loads kernel programs, which needs root");
    }
    // Before any thread, so that all of them leave the signals to the one that waits for them here.
    let mut signals = sys::catch_end_signals().context("catching Ctrl-C")?;
    thread::spawn(move || {
        let mut buffer = [0; 128];
        for asked in 0.. {
            if signals.read(&mut buffer).is_err() {
                return;
            }
            process::STOP.store(true, Ordering::Release);
            if asked > 0 {
                // Asked twice: what is left behind, the next run sweeps up.
                std::process::exit(130);
            }
        }
    });
    let screen = Screen::new();
    let result = acts::play(&screen, keep);
    if process::STOP.load(Ordering::Acquire) {
        screen.blank();
        screen.text("cleaned up: namespaces, programs, maps and processes are gone");
        return Ok(());
    }
    result
}

/// Waits for a signal.
fn wait_for_signal() {
    while !process::STOP.load(Ordering::Acquire) {
        thread::sleep(Duration::from_millis(100));
    }
}
