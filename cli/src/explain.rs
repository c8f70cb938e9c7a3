//! `bulkhead explain`: why a connection would be allowed or denied.
//!
//! The ladder comes from the oracle, which evaluates policies straight from their specification; the verdict comes from the code the kernel
//! runs. They are two implementations, so where they disagree one of them is wrong, and it is said loudly.

use std::{
    collections::BTreeSet,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use bulkhead_policy::{
    lease::Deadline,
    model::{Guard, Mode, Object, Zone},
    oracle::{self, Explanation, Matches},
    probe::{End, Probe},
    state::Decision,
};

use crate::{
    manifests,
    simulate::{Answer, EndAnswer, Question, QuestionPath, Route, Verdict, World, ip_protocol},
};

/// Backends of a Service that are explained one by one.
const MAX_BACKENDS: usize = 8;
/// Status when the two implementations disagree.
const DISAGREEMENT: u8 = 3;

/// Arguments of `explain`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Files or folders of manifests: YAML or JSON as kubectl prints it, lists included.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE_OR_DIR")]
    pub manifests: Vec<PathBuf>,
    /// Who opens the connection: an IP address or namespace/pod.
    #[arg(long)]
    pub from: String,
    /// To whom: an IP address (a Service's too) or namespace/pod.
    #[arg(long)]
    pub to: String,
    /// Destination port.
    #[arg(long)]
    pub port: i64,
    /// TCP, UDP or SCTP.
    #[arg(long, default_value = "TCP")]
    pub protocol: String,
    /// DNS name that the pod had the destination's address from; without it no rule that names fqdns applies.
    #[arg(long)]
    pub name: Option<String>,
}

/// Runs the command; the status is 3 when the verdict and the specification disagree.
///
/// # Errors
/// When the manifests cannot be read, or an end of the connection is not known.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let question = Question::new(&arguments.from, &arguments.to, arguments.port, &arguments.protocol)?
        .by_name(arguments.name.as_deref())?;
    let compiled = manifests::compile(manifests::read(&arguments.manifests)?);
    let mut errors = io::stderr().lock();
    compiled
        .diagnostics
        .iter()
        .try_for_each(|diagnostic| writeln!(errors, "{diagnostic}"))?;
    drop(errors);
    let objects = compiled.lowered.objects.clone();
    let world = World::new(compiled.lowered, compiled.compiler.state())?;
    let mut out = BufWriter::new(io::stdout().lock());
    let agrees = explain(&mut out, &world, &objects, &question)?;
    out.flush()?;
    Ok(if agrees {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DISAGREEMENT)
    })
}

/// Writes why; false when the verdict and the specification disagree.
///
/// # Errors
/// When an end of the connection is not known, or those of the writer.
pub fn explain(out: &mut impl Write, world: &World, objects: &[Object], question: &Question) -> anyhow::Result<bool> {
    let answer = world.ask(question)?;
    writeln!(out, "{}: {}", answer.verdict, answer.reason)?;
    match world.route(question)? {
        Route::Direct(path) => explain_path(out, world, objects, question, &path),
        Route::Service { service, paths } => {
            let paths = paths.unwrap_or_default();
            let mut agrees = true;
            for path in paths.iter().take(MAX_BACKENDS) {
                writeln!(
                    out,
                    "\nservice {service}, backend {} port {}",
                    path.destination, path.port
                )?;
                agrees &= explain_path(out, world, objects, question, path)?;
            }
            if paths.len() > MAX_BACKENDS {
                writeln!(
                    out,
                    "\n{} more backends are not shown; ask for their pods",
                    paths.len() - MAX_BACKENDS
                )?;
            }
            Ok(agrees)
        }
    }
}

fn explain_path(
    out: &mut impl Write,
    world: &World,
    objects: &[Object],
    question: &Question,
    path: &QuestionPath,
) -> anyhow::Result<bool> {
    let end = |workload: &Option<_>, address| End {
        workload: workload.clone(),
        address,
    };
    let probe = Probe {
        zone: Zone::default(),
        from: end(&path.from, path.source),
        to: end(&path.to, path.destination),
        protocol: ip_protocol(question.protocol),
        port: path.port,
        mode: Mode::Enforce,
    };
    let ladder = oracle::explain(objects, &probe, &|direction, guard| match guard {
        Guard::Name(names) => question.name.as_ref().is_some_and(|name| names.has(name)),
        Guard::Lease { profile, side, negated } => world.lease(&probe, direction, profile, *side).1 != *negated,
        Guard::Until(_) => true,
    });
    let answer = world.judge(path, question);
    let name = |pod: &Option<_>, what| match pod {
        Some(pod) => format!("pod {pod}"),
        None => format!("{what} is no pod, so no policy selects it"),
    };
    writeln!(out, "from {} ({})", path.source, name(&path.from, "it"))?;
    writeln!(out, "to   {} ({})", path.destination, name(&path.to, "it"))?;
    if path.from.is_some() && path.from == path.to {
        writeln!(out, "\na pod reaches itself (builtin/self)")?;
    }
    for explanation in &ladder {
        write!(out, "\n{explanation}")?;
        for line in leases(world, &probe, explanation) {
            writeln!(out, "    {line}")?;
        }
    }
    let mut agrees = true;
    for (direction, said, explained) in ends(&answer, &ladder) {
        if !same(said, explained) {
            agrees = false;
            writeln!(
                out,
                "\nWARNING: the verdict disagrees with the specification on {direction}: {} by {}. This is a bug in Bulkhead, and the \
                 kernel would do what the verdict says: report it with these manifests.",
                said.verdict, said.rule
            )?;
        }
    }
    Ok(agrees)
}

/// The leases that a ladder's rules ask for, in words: of which profile, of whose images, until when.
fn leases(world: &World, probe: &Probe, explanation: &Explanation) -> BTreeSet<String> {
    let policies = explanation.tiers.iter().flat_map(|tier| &tier.policies);
    let rules = policies.flat_map(|policy| &policy.rules);
    let asking = rules.filter(|rule| rule.matches != Matches::No);
    asking
        .filter_map(|rule| match &rule.guard {
            Some((Guard::Lease { profile, side, .. }, _)) => Some((profile, *side)),
            _ => None,
        })
        .map(|(profile, side)| {
            let (lease, runs) = world.lease(probe, explanation.direction, profile, side);
            let whose = match &lease.of {
                Some(pod) => format!("{side} {pod}, image class {:08x}", lease.class),
                None => format!("{side}, which is no pod"),
            };
            let until = match (lease.until, runs) {
                (None, _) => "there is none: the pod's images do not claim the profile".to_owned(),
                (Some(until), _) if until == Deadline::ALWAYS => "runs, and does not end by itself".to_owned(),
                (Some(until), true) => format!("runs until {until}"),
                (Some(until), false) => format!("is over since {until}"),
            };
            format!("lease of profile {profile} for the {whose}: {until}")
        })
        .collect()
}

/// The ends that have a ladder, with what the verdict says of them.
fn ends<'a>(answer: &'a Answer, ladder: &'a [Explanation]) -> Vec<(String, &'a EndAnswer, &'a Explanation)> {
    use bulkhead_policy::model::Direction;
    ladder
        .iter()
        .filter_map(|explained| {
            let said = match explained.direction {
                Direction::Egress => answer.egress.as_ref()?,
                Direction::Ingress => answer.ingress.as_ref()?,
            };
            Some((explained.direction.to_string(), said, explained))
        })
        .collect()
}

fn same(said: &EndAnswer, explained: &Explanation) -> bool {
    let decision = match said.verdict {
        Verdict::Allowed => Decision::Allow,
        Verdict::Denied => Decision::Deny,
    };
    decision == explained.decision && said.rule == explained.rule.to_string()
}
