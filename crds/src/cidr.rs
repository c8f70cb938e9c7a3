//! Address blocks as the API writes them.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use crate::report::Report;

/// Reads a block. Stricter than a general parser: a prefix length must be written, and an IPv6 block that means IPv4 addresses
/// (`::ffff:0:0/96`) is refused as the API server does, because two spellings of one address are a way around a rule.
pub(crate) fn parse(text: &str, field: &str, report: &mut Report<'_>) -> Result<IpNetwork, String> {
    let bad = || format!("{text:?} is not a block of addresses; write it like 10.0.0.0/8 or fd00::/8");
    let (_, length) = text.split_once('/').ok_or_else(bad)?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let block: IpNetwork = text.parse().map_err(|_| bad())?;
    if let IpNetwork::V6(v6) = block
        && v6.network().to_ipv4_mapped().is_some()
    {
        return Err(format!("{text:?} means IPv4 addresses; write it as an IPv4 block"));
    }
    let network = IpNetwork::new(block.network(), block.prefix()).map_err(|_| bad())?;
    if network.ip() != block.ip() {
        report.warning(
            field,
            format!("{text} has address bits beyond its prefix length and is read as {network}; write that"),
        );
    }
    Ok(network)
}

/// True when every address of `inner` is one of `outer`, and not the other way round.
pub(crate) fn strictly_inside(inner: IpNetwork, outer: IpNetwork) -> bool {
    inner.is_ipv4() == outer.is_ipv4() && inner.prefix() > outer.prefix() && outer.contains(inner.network())
}

/// Warns of blocks that add nothing because another one has them all.
pub(crate) fn warn_of_overlap(blocks: &[IpNetwork], field: &str, report: &mut Report<'_>) {
    let mut seen = BTreeSet::new();
    for (index, block) in blocks.iter().enumerate() {
        let outer = blocks.iter().find(|outer| strictly_inside(*block, **outer));
        if let Some(outer) = outer {
            report.warning(
                format!("{field}[{index}]"),
                format!("{block} lies inside {outer}, so it changes nothing; remove one of them"),
            );
        } else if !seen.insert(block) {
            report.warning(
                format!("{field}[{index}]"),
                format!("{block} is there twice; remove one of them"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Result<String, String>, usize) {
        let mut diagnostics = Vec::new();
        let result = parse(text, "cidr", &mut Report::new("", String::new(), &mut diagnostics));
        (result.map(|block| block.to_string()), diagnostics.len())
    }

    #[test]
    fn blocks() {
        assert_eq!(read("10.0.0.0/8"), (Ok("10.0.0.0/8".to_owned()), 0));
        assert_eq!(read("10.1.2.3/8"), (Ok("10.0.0.0/8".to_owned()), 1));
        assert_eq!(read("fd00::1/128"), (Ok("fd00::1/128".to_owned()), 0));
        assert_eq!(read("::/0"), (Ok("::/0".to_owned()), 0));
        for bad in [
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/255.0.0.0",
            "010.0.0.0/8",
            "x/8",
            "",
            "::ffff:10.0.0.0/104",
            "10.0.0.0/+8",
        ] {
            assert!(read(bad).0.is_err(), "{bad}");
        }
    }
}
