//! Reads a cluster and its policies from lines a person can check at a glance.
//!
//! ```text
//! namespace shop team=web
//! node n1 role=edge 192.168.0.1 range(10.0.0.0/16)
//! pod shop/db app=db 10.0.0.2 pg:TCP/5432 @n1
//! np shop/db app=db isolates(ingress,egress)             NetworkPolicy: namespace/name, pods of its namespace
//!   ingress allow pods(app=web) ns(team=web)pods(*) cidr(10.0.0.0/8,-10.1.0.0/16) : TCP/5432 TCP/80-90 pg
//! admin 10 guard ns(*)pods(*)                            ClusterNetworkPolicy: tier, priority, name, pods
//!   egress deny any if(until1) shadow
//! host edge role=edge isolates(ingress)                  ClusterSegmentPolicy without a tier: name, nodes
//! service shop/web TCP/80 nodeport(30080)                a Service without addresses
//! ```
//!
//! A selector is `*` or requirements joined by commas: `app=a|b`, `app!=a`, `app`, `!app`.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_policy::{fqdn::Names, model::*};

/// All objects of a text.
pub(crate) fn objects(text: &str) -> Vec<Object> {
    let mut objects: Vec<Object> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let object = match words[0] {
            "namespace" => Object::Namespace(Namespace {
                name: words[1].into(),
                labels: namespace_labels(&words),
            }),
            "node" => Object::Node(node(&words)),
            "pod" => Object::Workload(std::sync::Arc::new(pod(&words))),
            "np" => Object::Policy(network_policy(&words)),
            "host" => Object::Policy(host_policy(&words)),
            "service" => Object::Service(service(&words)),
            "admin" => Object::Policy(cluster_policy(Tier::Admin, &words)),
            "baseline" => Object::Policy(cluster_policy(Tier::Baseline, &words)),
            "ingress" | "egress" => {
                let Some(Object::Policy(policy)) = objects.last_mut() else {
                    panic!("a rule without policy: {line}")
                };
                add_rule(policy, &words);
                continue;
            }
            other => panic!("{other:?} begins no line: {line}"),
        };
        objects.push(object);
    }
    objects
}

fn labels(words: &[&str]) -> Labels {
    let pairs = words.iter().filter_map(|word| word.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn namespace_labels(words: &[&str]) -> Labels {
    let mut labels = labels(words);
    labels.insert("kubernetes.io/metadata.name".into(), words[1].into());
    labels
}

fn addresses(words: &[&str]) -> BTreeSet<IpAddr> {
    words.iter().filter_map(|word| word.parse().ok()).collect()
}

/// What stands in `name(…)`.
fn inside<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words
        .iter()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')'))
}

fn node(words: &[&str]) -> Node {
    Node {
        name: words[1].into(),
        labels: labels(words),
        addresses: addresses(words),
        pod_ranges: inside(words, "range")
            .into_iter()
            .flat_map(|list| list.split(','))
            .map(|it| it.parse().unwrap())
            .collect(),
    }
}

fn key(word: &str) -> WorkloadKey {
    let (namespace, name) = word.split_once('/').expect("namespace/name");
    WorkloadKey {
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn pod(words: &[&str]) -> Workload {
    let ports = words
        .iter()
        .filter(|word| word.parse::<IpAddr>().is_err())
        .filter_map(|word| word.split_once(':'));
    Workload {
        key: key(words[1]),
        uid: String::new(),
        labels: labels(words),
        service_account: "default".into(),
        node: words.iter().find_map(|word| word.strip_prefix('@')).map(Into::into),
        addresses: addresses(words),
        zone: Zone(0),
        named_ports: ports
            .map(|(name, port)| {
                let (protocol, number) = port.split_once('/').expect("PROTOCOL/number");
                NamedPort {
                    name: name.into(),
                    protocol: self::protocol(protocol),
                    number: number.parse().unwrap(),
                }
            })
            .collect(),
        attachment: Attachment::default(),
        image_class: 0,
        claims: std::collections::BTreeMap::default(),
    }
}

fn protocol(word: &str) -> Protocol {
    match word {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => panic!("{other} is no protocol"),
    }
}

fn selector(text: &str) -> LabelSelector {
    let values = |list: &str| list.split('|').map(str::to_owned).collect();
    let requirement = |text: &str| {
        let (key, operator) = if let Some((key, list)) = text.split_once("!=") {
            (key, Operator::NotIn(values(list)))
        } else if let Some((key, list)) = text.split_once('=') {
            (key, Operator::In(values(list)))
        } else if let Some(key) = text.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (text, Operator::Exists)
        };
        Requirement {
            key: key.into(),
            operator,
        }
    };
    LabelSelector(
        text.split(',')
            .filter(|part| !part.is_empty() && *part != "*")
            .map(requirement)
            .collect(),
    )
}

fn network_policy(words: &[&str]) -> Policy {
    let WorkloadKey { namespace, name } = key(words[1]);
    let isolates = inside(words, "isolates").unwrap_or_default();
    let directions = [("ingress", Direction::Ingress), ("egress", Direction::Egress)];
    Policy {
        subject: vec![PodMatch {
            namespaces: NamespaceMatch::Name(namespace.clone()),
            pods: selector(words[2]),
            service_accounts: Match::Any,
        }],
        nodes: Vec::new(),
        isolates: directions
            .into_iter()
            .filter(|(word, _)| isolates.contains(word))
            .map(|(_, it)| it)
            .collect(),
        ..policy(Tier::NetworkPolicy, namespace, name, words)
    }
}

fn host_policy(words: &[&str]) -> Policy {
    let alike = network_policy(&["np", &format!("/{}", words[1]), "*", words[3]]);
    Policy {
        key: PolicyKey {
            kind: PolicyKind::ClusterSegmentPolicy,
            ..alike.key
        },
        subject: Vec::new(),
        nodes: vec![selector(words[2])],
        ..alike
    }
}

fn service(words: &[&str]) -> Service {
    let (protocol, port) = words[2].split_once('/').expect("PROTOCOL/number");
    let port = port.parse().unwrap();
    let port = ServicePort {
        name: String::new(),
        protocol: self::protocol(protocol),
        port,
        target: TargetPort::Number(port),
        node_port: inside(words, "nodeport").map(|number| number.parse().unwrap()),
    };
    Service {
        key: key(words[1]),
        addresses: BTreeSet::new(),
        ports: vec![port],
        selector: None,
        health_check_port: None,
    }
}

fn cluster_policy(tier: Tier, words: &[&str]) -> Policy {
    let Peer::Pods(pods) = peer(words[3], "") else {
        panic!("pods: {}", words[3])
    };
    Policy {
        priority: words[1].parse().expect("a priority"),
        subject: vec![pods],
        nodes: Vec::new(),
        ..policy(tier, String::new(), words[2].into(), words)
    }
}

fn policy(tier: Tier, namespace: String, name: String, words: &[&str]) -> Policy {
    let kind = if tier == Tier::NetworkPolicy {
        PolicyKind::NetworkPolicy
    } else {
        PolicyKind::ClusterNetworkPolicy
    };
    Policy {
        key: PolicyKey { kind, namespace, name },
        uid: String::new(),
        generation: inside(words, "generation").map_or(0, |number| number.parse().unwrap()),
        tier,
        priority: 0,
        subject: Vec::new(),
        nodes: Vec::new(),
        isolates: BTreeSet::new(),
        mode: mode(words),
        manner: Manner::default(),
        ingress: Vec::new(),
        egress: Vec::new(),
    }
}

fn mode(words: &[&str]) -> Mode {
    if words.contains(&"shadow") {
        Mode::Shadow
    } else {
        Mode::Enforce
    }
}

fn add_rule(policy: &mut Policy, words: &[&str]) {
    let action = match words[1] {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        "pass" => Action::Pass,
        other => panic!("{other} is no action"),
    };
    let end = words
        .iter()
        .position(|word| word.starts_with("if(") || *word == "shadow")
        .unwrap_or(words.len());
    let (peers, ports) = match words[2..end].iter().position(|word| *word == ":") {
        Some(at) => (
            &words[2..2 + at],
            Match::OneOf(words[3 + at..end].iter().map(|word| port(word)).collect()),
        ),
        None => (&words[2..end], Match::Any),
    };
    let peers = match peers {
        ["any"] => Match::Any,
        list => Match::OneOf(
            list.iter()
                .filter(|word| **word != "nobody")
                .map(|word| peer(word, &policy.key.namespace))
                .collect(),
        ),
    };
    let rules = if words[0] == "ingress" {
        &mut policy.ingress
    } else {
        &mut policy.egress
    };
    let index = u32::try_from(rules.len()).unwrap();
    let guard = inside(words, "if").map(guard);
    rules.push(Rule {
        name: None,
        index,
        action,
        peers,
        ports,
        guard,
        mode: mode(words),
    });
}

/// `until1`, `lease2`, `name3`.
fn guard(text: &str) -> Guard {
    let number = |prefix| {
        text.strip_prefix(prefix)
            .map(|number: &str| number.parse::<u32>().unwrap())
    };
    match (number("until"), number("lease"), number("name")) {
        (Some(number), ..) => Guard::Until(number),
        (_, Some(profile), _) => Guard::Lease {
            profile: format!("lease{profile}").parse().unwrap(),
            side: Side::Peer,
            negated: false,
        },
        (.., Some(number)) => Guard::Name(Names::new([format!("n{number}.test").parse().unwrap()].into())),
        _ => panic!("{text} is no guard"),
    }
}

fn peer(word: &str, own: &str) -> Peer {
    let (name, rest) = word.split_once('(').expect("a peer");
    let (inner, rest) = rest.split_once(')').expect("a closing parenthesis");
    match name {
        "cidr" => {
            let (except, cidr): (Vec<&str>, Vec<&str>) = inner.split(',').partition(|block| block.starts_with('-'));
            Peer::Network {
                cidr: cidr[0].parse().unwrap(),
                except: except.iter().map(|it| it[1..].parse().unwrap()).collect(),
            }
        }
        "nodes" => Peer::Nodes(selector(inner)),
        "pods" => Peer::Pods(PodMatch {
            namespaces: NamespaceMatch::Name(own.into()),
            pods: selector(inner),
            service_accounts: Match::Any,
        }),
        "ns" => {
            let pods = inside(&[rest], "pods").unwrap_or("*");
            Peer::Pods(PodMatch {
                namespaces: NamespaceMatch::Labels(selector(inner)),
                pods: selector(pods),
                service_accounts: Match::Any,
            })
        }
        other => panic!("{other} is no peer"),
    }
}

/// `TCP/80`, `TCP/80-90`, `TCP/*`, `http`, `TCP/http`.
fn port(word: &str) -> PortMatch {
    let Some((protocol, port)) = word.split_once('/') else {
        return PortMatch::Named {
            protocol: None,
            name: word.into(),
        };
    };
    let protocol = self::protocol(protocol);
    let (first, last) = if port == "*" {
        ("0", "65535")
    } else {
        port.split_once('-').unwrap_or((port, port))
    };
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) => PortMatch::Range { protocol, first, last },
        _ => PortMatch::Named {
            protocol: Some(protocol),
            name: port.into(),
        },
    }
}
