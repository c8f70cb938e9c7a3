//! Running other programs: quiet while it goes well, with a sign of life after two seconds, the whole log when it fails.

use std::{
    fs::{self, File},
    io::{IsTerminal, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::paths;

/// SGR code of red.
pub(crate) const RED: &str = "31";
/// SGR code of green.
pub(crate) const GREEN: &str = "32";
/// SGR code of yellow.
pub(crate) const YELLOW: &str = "33";
/// SGR code of bold.
pub(crate) const BOLD: &str = "1";
/// SGR code of dim.
pub(crate) const DIM: &str = "2";

const LOG_LINES_SHOWN: usize = 60;
const POLL: Duration = Duration::from_millis(50);
const FIRST_SIGN: Duration = Duration::from_secs(2);
const SIGN_EVERY: Duration = Duration::from_secs(20);

/// Colours a text when standard output is a terminal.
pub(crate) fn paint(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// `1.2 s`, `3 m 04 s`.
pub(crate) fn seconds(elapsed: Duration) -> String {
    let whole = elapsed.as_secs();
    if whole < 60 {
        format!("{:.1} s", elapsed.as_secs_f64())
    } else {
        format!("{} m {:02} s", whole / 60, whole % 60)
    }
}

/// A command of cargo in the checkout.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(paths::cargo());
    command.current_dir(paths::root()).args(arguments);
    command
}

/// What a program prints, trimmed; `None` when it is not there or fails.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs one step to its end. Its output goes to a log file; the terminal gets a title, a sign of life while it runs,
/// and on failure the end of the log.
pub(crate) fn step(title: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let (succeeded, path) = attempt(title, command)?;
    if succeeded {
        return Ok(());
    }
    let text = fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES_SHOWN)) {
        eprintln!("    {line}");
    }
    bail!(
        "{title} failed after {}; the whole log is {}",
        seconds(started.elapsed()),
        path.display()
    )
}

/// As [`step`], for a program whose failure is a result: whether it succeeded, and where its log is.
pub(crate) fn attempt(title: &str, command: &mut Command) -> Result<(bool, PathBuf)> {
    let directory = paths::target().join("xtask");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let name: String = title
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(60)
        .collect();
    let path = directory.join(format!("{name}.log"));
    let log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let errors = log.try_clone().context("sharing the log file")?;
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("{title}: starting {}", command.get_program().to_string_lossy()))?;
    let succeeded = watch(title, &mut child, &path, started)?;
    let elapsed = started.elapsed();
    if succeeded && elapsed > FIRST_SIGN {
        println!(
            "{} {title} {}",
            paint(GREEN, "✓"),
            paint(DIM, &format!("({})", seconds(elapsed)))
        );
    }
    Ok((succeeded, path))
}

/// Waits for the child, showing that it lives; true when it succeeded.
fn watch(title: &str, child: &mut Child, log: &Path, started: Instant) -> Result<bool> {
    let terminal = std::io::stdout().is_terminal();
    let mut next_sign = FIRST_SIGN;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("{title}: waiting"))? {
            if terminal {
                print!("\r\x1b[K");
            }
            return Ok(status.success());
        }
        thread::sleep(POLL);
        let elapsed = started.elapsed();
        if terminal && elapsed > FIRST_SIGN {
            let last: String = last_line(log).chars().take(70).collect();
            print!("\r\x1b[K… {title} {} {}", seconds(elapsed), paint(DIM, &last));
            // A terminal that went away changes nothing about the step.
            drop(std::io::stdout().flush());
        } else if elapsed > next_sign {
            println!("… {title} ({})", seconds(elapsed));
            next_sign = elapsed + SIGN_EVERY;
        }
    }
}

/// The last line of a growing file, without reading all of it.
fn last_line(path: &Path) -> String {
    let mut tail = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(400)))?;
        file.read_to_end(&mut tail)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&tail);
    text.trim_end()
        .rsplit(['\n', '\r'])
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// True when we are root.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
