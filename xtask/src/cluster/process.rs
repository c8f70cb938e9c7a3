//! Processes that outlive the command that started them, found again by the id they left in a file.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

const POLL: Duration = Duration::from_millis(100);
const END_WITHIN: Duration = Duration::from_secs(20);

/// Runs a command to its end and returns what it prints; its complaint is the error.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let name = format!(
        "{} {}",
        command.get_program().to_string_lossy(),
        command
            .get_args()
            .map(|argument| argument.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    );
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a process that goes on without us, its output in `log`, its id in `file`.
pub(crate) fn start(command: &mut Command, log: &Path, file: &Path) -> Result<()> {
    let output = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let errors = output.try_clone().context("sharing a log file")?;
    let name = command.get_program().to_string_lossy().into_owned();
    // A process group of its own: Ctrl-C in this terminal is not for it.
    let child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let identity = format!("{} {}", child.id(), started(child.id()).unwrap_or_default());
    fs::write(file, identity).with_context(|| format!("writing {}", file.display()))
}

/// The id in a file, if that very process still lives: ids are used again, so its start time must be the one noted.
pub(crate) fn alive(file: &Path) -> Option<u32> {
    let text = fs::read_to_string(file).ok()?;
    let (id, time) = text.split_once(' ')?;
    let id = id.parse().ok()?;
    (started(id)?.to_string() == time).then_some(id)
}

/// When a process started, in ticks since boot; `None` when it is gone or only waits to be reaped.
fn started(id: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if ["Z", "X"].contains(&state) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The first child of a process.
pub(crate) fn child_of(id: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Ends the process of a file, and waits until it is gone.
pub(crate) fn end(file: &Path, signal: &str) -> Result<()> {
    let Some(id) = alive(file) else {
        return Ok(());
    };
    kill(id, signal)?;
    wait_until(&format!("the end of process {id}"), END_WITHIN, || {
        alive(file).is_none()
    })
}

/// Sends a signal; that the process is gone is no error.
pub(crate) fn kill(id: u32, signal: &str) -> Result<()> {
    Command::new("kill")
        .args(["-s", signal, &id.to_string()])
        .stderr(Stdio::null())
        .status()
        .context("starting kill")
        .map(drop)
}

/// Asks again and again until something holds; an error when it does not in time.
pub(crate) fn wait_until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > within {
            bail!("waited {} s for {what}", within.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_while_it_lives_and_an_id_used_again_is_not_it() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("bulkhead-xtask-process-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let (file, log) = (folder.join("pid"), folder.join("log"));
        start(Command::new("sleep").arg("1000"), &log, &file)?;
        let id = alive(&file).context("just started")?;
        let other = folder.join("other");
        fs::write(&other, format!("{id} 1"))?;
        assert_eq!(alive(&other), None, "another start time is another process");
        end(&file, "KILL")?;
        assert_eq!(alive(&file), None);
        fs::remove_dir_all(&folder)?;
        Ok(())
    }
}
