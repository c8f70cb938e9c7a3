//! `cargo xtask conformance`: upstream's NetworkPolicy suite on our cluster, with our agents or, to see it fail, without.

mod junit;
mod policy_api;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    Arguments,
    cluster::{self, Cluster, Wanted},
    images, paths,
    run::{self, attempt, paint, seconds, step},
    tests::Outcome,
};
use junit::{Spec, Verdict};

/// Few specs that together need every part: an API, a deny, an allow, a port, a namespace selector, egress, a change.
const SMOKE: &str = "API operations|support a 'default-deny-ingress' policy|based on PodSelector|support allow-all policy|\
    egress access on one named port|updated policy";
/// Where the chart is installed.
pub(crate) const NAMESPACE: &str = "bulkhead-system";
const ROLLOUT: &str = "--timeout=180s";

/// Which of upstream's suites.
#[derive(Clone, Copy)]
enum Suite {
    /// NetworkPolicy, of Kubernetes itself.
    NetworkPolicy,
    /// ClusterNetworkPolicy, of network-policy-api.
    PolicyApi,
}

impl Suite {
    fn of(name: Option<&str>) -> Result<Self> {
        match name {
            None | Some("network-policy") => Ok(Self::NetworkPolicy),
            Some("network-policy-api") => Ok(Self::PolicyApi),
            Some(other) => bail!("there is no suite {other}: network-policy or network-policy-api"),
        }
    }
}

pub(crate) fn conformance(arguments: &mut Arguments) -> Result<ExitCode> {
    let focus = arguments.value("--focus")?;
    let smoke = arguments.flag("--smoke");
    let without_agents = arguments.flag("--without-agents");
    let suite = Suite::of(arguments.value("--suite")?.as_deref())?;
    arguments.done()?;
    if !cluster::can_run()? {
        return Ok(ExitCode::SUCCESS);
    }
    let focus = match (&focus, smoke) {
        (_, true) if matches!(suite, Suite::PolicyApi) => bail!("--smoke is of the suite network-policy; give --focus"),
        (Some(_), true) => bail!("--smoke is a --focus of its own; give one of them"),
        (Some(focus), false) => focus,
        (None, true) => SMOKE,
        (None, false) => ".",
    };
    let started = Instant::now();
    let specs = run(suite, focus, without_agents)?;
    let outcome = print(&specs);
    println!("{} in {}", paint(run::BOLD, "conformance"), seconds(started.elapsed()));
    println!(
        "{} passed, {} failed, {} skipped",
        outcome.passed,
        outcome.failed.len(),
        outcome.skipped.len()
    );
    Ok(if outcome.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The tier `cluster` of `cargo xtask test`: few specs, with our agents.
pub(crate) fn smoke() -> Result<Outcome> {
    if !cluster::can_run()? {
        let why = "needs root, Go and kubectl".to_owned();
        return Ok(Outcome {
            skipped: vec![("upstream's NetworkPolicy specs".to_owned(), why)],
            ..Outcome::default()
        });
    }
    Ok(print(&run(Suite::NetworkPolicy, SMOKE, false)?))
}

/// Brings up what is needed and runs the specs that match.
fn run(suite: Suite, focus: &str, without_agents: bool) -> Result<Vec<Spec>> {
    let cluster = match Cluster::running()? {
        Some(cluster) => cluster,
        None => cluster::up(&Wanted::default())?,
    };
    if without_agents {
        // Programs stay on the pods' devices when an agent ends, so taking the agents away would not be enough.
        if cluster.kubectl_ok(&["get", "namespace", NAMESPACE]).is_ok() {
            bail!("agents were deployed on this cluster; for one without: cargo xtask cluster down");
        }
    } else {
        deploy(&cluster)?;
    }
    let folder = paths::target().join("xtask/conformance");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    match suite {
        Suite::NetworkPolicy => network_policy(&cluster, focus, &folder),
        Suite::PolicyApi => policy_api::run(&cluster, focus, kernel_has_sctp()),
    }
}

/// Our images on every node, and the chart installed with them: what a person does, but for the tag.
pub(crate) fn deploy(cluster: &Cluster) -> Result<()> {
    images::load(cluster, &images::build(false)?)?;
    let mut helm = Command::new(cluster.binaries.program("helm"));
    helm.args(["upgrade", "--install", "bulkhead"])
        .arg(paths::root().join("deploy/helm/bulkhead"))
        .args(["--namespace", NAMESPACE, "--create-namespace"])
        .args(["--set", &format!("image.tag={}", images::TAG)])
        .env("KUBECONFIG", cluster.kubeconfig());
    step("install the chart", &mut helm)?;
    for what in ["deployment/bulkhead-controller", "daemonset/bulkhead-agent"] {
        // The tag of a checkout's images stays when they are built anew.
        cluster.kubectl_ok(&["--namespace", NAMESPACE, "rollout", "restart", what])?;
        cluster
            .kubectl_ok(&["--namespace", NAMESPACE, "rollout", "status", what, ROLLOUT])
            .with_context(|| {
                format!("to see why: kubectl --namespace {NAMESPACE} describe pods; kubectl logs {what}")
            })?;
    }
    println!("{} controller and agents run", paint(run::GREEN, "✓"));
    Ok(())
}

/// Runs upstream's program, and reads what it reports.
fn network_policy(cluster: &Cluster, focus: &str, folder: &Path) -> Result<Vec<Spec>> {
    let report: PathBuf = folder.join("junit_01.xml");
    if report.exists() {
        fs::remove_file(&report).context("removing the last report")?;
    }
    let mut command = Command::new(cluster.binaries.program("e2e-netpol"));
    command
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("KUBE_TEST_REPO_LIST", cluster.binaries.repositories())
        .args(["-provider=local", "-ginkgo.v", "-ginkgo.no-color"])
        .arg(format!("-ginkgo.focus={focus}"))
        .arg(format!("-report-dir={}", folder.display()));
    let sctp = kernel_has_sctp();
    if !sctp {
        command.arg("-ginkgo.skip=SCTPConnectivity");
    }
    let (_, log) = attempt("upstream NetworkPolicy suite", &mut command)?;
    let text = fs::read_to_string(&report).with_context(|| format!("the suite ended early; see {}", log.display()))?;
    println!("log     {}\nreport  {}", log.display(), report.display());
    let mut specs = junit::read(&text);
    specs.retain_mut(|spec| {
        if spec.verdict == Verdict::NotSelected && !sctp && spec.name.contains("SCTPConnectivity") && focus == "." {
            spec.verdict = Verdict::Skipped("this kernel has no SCTP".to_owned());
        }
        spec.verdict != Verdict::NotSelected
    });
    if specs.iter().all(|spec| matches!(spec.verdict, Verdict::Skipped(_))) {
        bail!("no spec ran, which is not a success: does --focus {focus:?} match one?");
    }
    Ok(specs)
}

/// The protocols this kernel has; a module would be listed once it is loaded.
fn kernel_has_sctp() -> bool {
    fs::read_to_string("/proc/net/protocols").is_ok_and(|text| text.lines().any(|line| line.starts_with("SCTP")))
}

/// The table, failures last where they are seen.
fn print(specs: &[Spec]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut sorted: Vec<&Spec> = specs.iter().collect();
    sorted.sort_by_key(|spec| (matches!(spec.verdict, Verdict::Failed(_)), &spec.name));
    for spec in sorted {
        let (code, word, why) = match &spec.verdict {
            Verdict::Passed => (run::GREEN, "passed ", ""),
            Verdict::Failed(why) => (run::RED, "FAILED ", why.as_str()),
            Verdict::Skipped(why) => (run::YELLOW, "SKIPPED", why.as_str()),
            Verdict::NotSelected => continue,
        };
        println!("{} {:>6.1} s  {}", paint(code, word), spec.seconds, spec.name);
        for line in why.lines().take(4) {
            println!("                  {}", paint(run::DIM, line));
        }
        match &spec.verdict {
            Verdict::Passed => outcome.passed += 1,
            Verdict::Failed(_) => outcome.failed.push(spec.name.clone()),
            _ => outcome.skipped.push((spec.name.clone(), why.to_owned())),
        }
    }
    outcome
}
