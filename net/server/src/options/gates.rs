//! Feature gates (`--feature-gates`).
//!
//! Owns: the gates of etcd 3.7, what this server does with each, their syntax. Does not know: what a gate changes.
//!
//! Invariants
//! - I1: a gate that has no effect here is either without meaning for this server, with the reason beside it, or
//!   refused when it is turned on.

use super::value;

/// What this server does with a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateSupport {
    /// It has its effect.
    Used,
    /// On or off, nothing changes; the text says why.
    Inert(&'static str),
    /// It cannot be turned on.
    Absent,
}

/// One gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// `ALPHA` or `BETA`, as metrics show it.
    pub stage: &'static str,
    /// Its state without the flag.
    pub default: bool,
    /// What becomes of it.
    pub support: GateSupport,
}

const fn gate(name: &'static str, stage: &'static str, default: bool, support: GateSupport) -> Gate {
    Gate { name, stage, default, support }
}

const ALONE: GateSupport = GateSupport::Inert("there are no other members to compare with");

/// Every gate, by name.
pub const GATES: &[Gate] = &[
    gate("AllAlpha", "ALPHA", false, GateSupport::Used),
    gate("AllBeta", "BETA", false, GateSupport::Used),
    gate("CompactHashCheck", "ALPHA", false, ALONE),
    gate("FastLeaseKeepAlive", "BETA", true, GateSupport::Inert("keep-alives do not wait for apply")),
    gate("InitialCorruptCheck", "ALPHA", false, ALONE),
    gate("LeaseCheckpoint", "ALPHA", false, GateSupport::Used),
    gate("LeaseCheckpointPersist", "ALPHA", false, GateSupport::Inert("what is noted of leases is always durable")),
    gate("PriorityRequest", "ALPHA", false, GateSupport::Absent),
    gate("SetMemberLocalAddr", "ALPHA", false, GateSupport::Absent),
    gate("StopGRPCServiceOnDefrag", "ALPHA", false, GateSupport::Inert("defragmentation stops nothing")),
    gate("TxnModeWriteWithSharedBuffer", "BETA", true, GateSupport::Inert("transactions share no buffer")),
];

/// The state of every gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates([bool; GATES.len()]);

impl Default for Gates {
    fn default() -> Self {
        Self(std::array::from_fn(|position| GATES[position].default))
    }
}

impl Gates {
    /// Reads `Name=bool,...`.
    ///
    /// # Errors
    /// In etcd's words, what is wrong with the list.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut gates = Self::default();
        let mut named = [false; GATES.len()];
        for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, text) = pair.split_once('=').ok_or_else(|| format!("missing bool value for {pair}"))?;
            let (name, text) = (name.trim(), text.trim());
            let position = GATES
                .iter()
                .position(|gate| gate.name == name)
                .ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
            gates.0[position] = value::boolean(text).ok_or_else(|| {
                format!("invalid value of {name}={text}, err: strconv.ParseBool: parsing {text:?}: invalid syntax")
            })?;
            named[position] = true;
        }
        for (all, stage) in [("AllAlpha", "ALPHA"), ("AllBeta", "BETA")] {
            if gates.is_on(all) {
                let of_stage = |position: &usize| GATES[*position].stage == stage && !named[*position];
                (0..GATES.len()).filter(of_stage).for_each(|position| gates.0[position] = true);
            }
        }
        Ok(gates)
    }

    /// Whether a gate is on.
    ///
    /// # Panics
    /// If there is no such gate.
    #[must_use]
    pub fn is_on(&self, name: &str) -> bool {
        let position = GATES.iter().position(|gate| gate.name == name);
        self.0[position.expect("gates are asked for by the names of the table")]
    }

    /// Every gate and its state.
    pub fn all(&self) -> impl Iterator<Item = (&'static Gate, bool)> {
        GATES.iter().zip(self.0)
    }

    /// The rules between gates, and what this version cannot do.
    ///
    /// # Errors
    /// What stands against it.
    pub fn check(&self) -> Result<(), String> {
        if self.is_on("LeaseCheckpointPersist") && !self.is_on("LeaseCheckpoint") {
            let message = "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint";
            return Err(message.to_owned());
        }
        match self.all().find(|(gate, is_on)| *is_on && gate.support == GateSupport::Absent) {
            Some((gate, _)) => Err(format!(
                "--feature-gates={}=true is refused: this version of trilithd has no such feature",
                gate.name
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_their_errors() {
        let gates = Gates::parse("LeaseCheckpoint=true , TxnModeWriteWithSharedBuffer=0").expect("legal");
        assert!(gates.is_on("LeaseCheckpoint") && !gates.is_on("TxnModeWriteWithSharedBuffer"));
        assert!(gates.is_on("FastLeaseKeepAlive"), "on unless turned off");
        assert_eq!(Gates::parse(""), Ok(Gates::default()));
        assert_eq!(Gates::parse("Foo=true"), Err("unrecognized feature gate: Foo".to_owned()));
        assert_eq!(Gates::parse("LeaseCheckpoint"), Err("missing bool value for LeaseCheckpoint".to_owned()));
        let message =
            "invalid value of LeaseCheckpoint=maybe, err: strconv.ParseBool: parsing \"maybe\": invalid syntax";
        assert_eq!(Gates::parse("LeaseCheckpoint=maybe"), Err(message.to_owned()));
    }

    #[test]
    fn rules_between_gates() {
        let check = |list: &str| Gates::parse(list).and_then(|gates| gates.check());
        assert!(check("LeaseCheckpointPersist=true").expect_err("alone").contains("requires enabling"));
        assert_eq!(check("LeaseCheckpointPersist=true,LeaseCheckpoint=true"), Ok(()));
        assert_eq!(check("InitialCorruptCheck=true"), Ok(()), "what cluster tools set on every member");
        assert!(check("PriorityRequest=true").expect_err("absent").contains("PriorityRequest"));
        assert_eq!(check("PriorityRequest=false"), Ok(()));
        assert_eq!(check("AllBeta=true"), Ok(()));
        assert!(check("AllAlpha=true").is_err(), "it turns on what is absent");
        assert_eq!(check("AllAlpha=true,PriorityRequest=false,SetMemberLocalAddr=false"), Ok(()));
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(GATES.windows(2).all(|pair| pair[0].name < pair[1].name));
    }
}
