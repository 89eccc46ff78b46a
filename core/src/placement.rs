//! Placement strategies in the form in which they are decided on.

use steady_proto::v1::placement_constraint_type::Value as ConstraintType;
use steady_proto::v1::placement_strategy_type::Value as Type;
use steady_proto::v1::{PlacementConstraint, PlacementStrategy};

use crate::query::Query;

/// What `memberOf` constraints ask of an instance; those that are not understood were refused when they were written.
pub fn queries<'a>(constraints: impl IntoIterator<Item = &'a PlacementConstraint>) -> Vec<Query> {
    let asked = constraints.into_iter().filter(|constraint| constraint.r#type() == ConstraintType::MemberOf);
    asked.filter_map(|constraint| Query::parse(&constraint.expression).ok()).collect()
}

/// One step of a strategy chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// Any.
    Random,
    /// Fewest tasks of the group on the same instance.
    SpreadInstance,
    /// Fewest tasks of the group on instances with the same value of this attribute.
    SpreadAttribute(String),
    /// Least cpu left.
    BinpackCpu,
    /// Least memory left.
    BinpackMemory,
}

/// Attribute that names an instance's zone.
pub const ZONE: &str = "ecs.availability-zone";

impl Strategy {
    /// The strategy that a spec names; what is wrong with it otherwise.
    pub fn parse(spec: &PlacementStrategy) -> Result<Self, String> {
        let field = spec.field.as_str();
        match spec.r#type() {
            Type::Random => Ok(Strategy::Random),
            Type::Spread => match field.split_once(':') {
                _ if field.eq_ignore_ascii_case("instanceId") || field.eq_ignore_ascii_case("host") => {
                    Ok(Strategy::SpreadInstance)
                }
                Some((prefix, name)) if prefix.eq_ignore_ascii_case("attribute") && !name.is_empty() => {
                    Ok(Strategy::SpreadAttribute(name.to_owned()))
                }
                _ => Err(format!("`{field}` cannot be spread over; expected instanceId, host or attribute:NAME")),
            },
            Type::Binpack => match field.to_ascii_lowercase().as_str() {
                "cpu" => Ok(Strategy::BinpackCpu),
                "memory" => Ok(Strategy::BinpackMemory),
                _ => Err(format!("`{field}` cannot be packed by; expected cpu or memory")),
            },
            Type::Unspecified => Err("type is missing; expected random, spread or binpack".into()),
        }
    }
}
