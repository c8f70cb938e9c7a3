//! Real processes that the testbed started: their output, their end, and that they do not outlive us.

use std::os::unix::process::CommandExt;
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::sys;

/// Set when the person wants an end: everything that waits gives up.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// True when the person wants an end.
pub fn stopped() -> bool {
    STOP.load(Ordering::Acquire)
}

/// Lines of standard output kept; a test reads far fewer.
const LINES_MAX: usize = 65_536;

/// How long a waiting reader may take to see [`STOP`].
const STOP_SEEN_WITHIN: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Lines {
    queue: VecDeque<String>,
    ended: bool,
}

/// A running process; killed when dropped.
pub struct Running {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<(Mutex<Lines>, Condvar)>,
    log: PathBuf,
}

impl Running {
    /// Starts a command. Its standard error goes to `<logs>/<name>.log`; its standard output is read line by line.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        sys::restore_end_signals(&mut command);
        // A group of its own: Ctrl-C is for us, and we end the others in our order.
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} ({})", command.get_program().to_string_lossy()))?;
        let lines = Arc::new((Mutex::new(Lines::default()), Condvar::new()));
        let output = child.stdout.take().context("no standard output")?;
        let shared = Arc::clone(&lines);
        thread::spawn(move || {
            let (lock, changed) = &*shared;
            for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                let mut lines = lock.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.queue.len() == LINES_MAX {
                    lines.queue.pop_front();
                }
                lines.queue.push_back(line);
                changed.notify_all();
            }
            lock.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            changed.notify_all();
        });
        let stdin = child.stdin.take();
        Ok(Self {
            name: name.to_owned(),
            child,
            stdin,
            lines,
            log,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file its standard error goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When it has ended or its input is closed.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .with_context(|| format!("{}: its input is closed", self.name))?;
        stdin
            .write_all(text.as_bytes())
            .with_context(|| format!("writing to {}", self.name))
    }

    /// Closes its standard input, which asks peers to finish and report.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// The next line of its standard output.
    ///
    /// # Errors
    /// When it ends, or nothing comes within the time.
    pub fn line(&self, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        let (lock, changed) = &*self.lines;
        let mut lines = lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = lines.queue.pop_front() {
                return Ok(line);
            }
            if lines.ended {
                bail!("{} ended: {}", self.name, self.log_tail());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if stopped() {
                bail!("interrupted");
            }
            if left.is_zero() {
                bail!("{}: no line within {within:?}: {}", self.name, self.log_tail());
            }
            lines = changed
                .wait_timeout(lines, left.min(STOP_SEEN_WITHIN))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// A line that has come already.
    pub fn try_line(&self) -> Option<String> {
        self.lines
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .queue
            .pop_front()
    }

    /// True while it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it with SIGKILL and waits: nothing of it runs afterwards, not even its clean-up.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        // Fails only when it has ended by itself, which `wait` then tells.
        drop(self.child.kill());
        self.child.wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Asks it to end with SIGTERM and waits.
    ///
    /// # Errors
    /// When it does not end within the time; it is killed then.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        drop(sys::signal(self.pid(), libc::SIGTERM));
        self.wait(within)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within the time; it is killed then.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let status = until(within, || self.child.try_wait().ok().flatten());
        if let Some(status) = status {
            return Ok(status);
        }
        self.kill()?;
        bail!("{} did not end within {within:?}: {}", self.name, self.log_tail())
    }

    /// The end of its log, for error messages.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines
            .iter()
            .skip(lines.len().saturating_sub(15))
            .copied()
            .collect::<Vec<_>>()
            .join("\n    ");
        if tail.is_empty() {
            "its log is empty".to_owned()
        } else {
            format!("its log ends with\n    {tail}")
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

/// Looks at a condition until it gives a value or the time is over.
pub fn until<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    const INTERVAL: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = look() {
            return Some(value);
        }
        if Instant::now() >= deadline || stopped() {
            return None;
        }
        thread::sleep(INTERVAL);
    }
}
