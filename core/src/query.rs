//! The cluster query language: which container instances an expression selects (ECS cluster query language).
//!
//! ```text
//! or   := and (("||" | "or") and)*         and := not (("&&" | "and") not)*
//! not  := ("!" | "not") not | "(" or ")" | subject operator [argument]
//! ```
//! Subjects are `agentConnected`, `agentVersion`, `attribute:NAME`, `ec2InstanceId` (the instance's name), `registeredAt`,
//! `runningTasksCount` and `task:group`. Versions compare as versions, dates and numbers as what they are, the rest as text.

use std::cmp::Ordering;

use regex::Regex;

/// Longest expression (ECS).
pub const MAX_LENGTH: usize = 2000;
/// Deepest nesting of parentheses and negations.
const MAX_DEPTH: usize = 50;

/// What is wrong with an expression, and where: the number of characters before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} at character {}", .at + 1)]
pub struct QueryError {
    /// Characters before it.
    pub at: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// An expression that was understood.
#[derive(Debug, Clone)]
pub struct Query(Node);

#[derive(Debug, Clone)]
enum Node {
    Or(Vec<Node>),
    And(Vec<Node>),
    Not(Box<Node>),
    Is(Subject, Test),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    AgentConnected,
    AgentVersion,
    Attribute(String),
    InstanceId,
    RegisteredAt,
    RunningTasksCount,
    TaskGroup,
}

#[derive(Debug, Clone)]
enum Test {
    Exists(bool),
    Equals(bool, String),
    /// Whether these orderings of the instance's value to the argument satisfy.
    Compares(&'static [Ordering], String),
    In(bool, Vec<String>),
    Matches(bool, Regex),
}

/// A container instance as a query sees it.
pub trait Instance {
    /// Its agent has an open session.
    fn agent_connected(&self) -> bool;
    /// `1.2.3`; empty: unknown.
    fn agent_version(&self) -> &str;
    /// Value of an attribute, empty for one without; `None`: it does not have it.
    fn attribute(&self, name: &str) -> Option<&str>;
    /// Its name.
    fn id(&self) -> &str;
    /// When it was registered, as RFC 3339; empty: unknown.
    fn registered_at(&self) -> String;
    /// Tasks on it.
    fn running_tasks_count(&self) -> usize;
    /// Whether it has a task of a group for which this holds.
    fn has_group(&self, which: &dyn Fn(&str) -> bool) -> bool;
}

impl Query {
    /// Reads an expression.
    ///
    /// # Errors
    /// Where it is not understood, and what would be.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let length = text.chars().count();
        if length > MAX_LENGTH {
            let message = format!("the expression has {length} characters; at most {MAX_LENGTH}");
            return Err(QueryError { at: MAX_LENGTH, message });
        }
        let mut parser = Parser { tokens: tokens(text)?, next: 0, end: length, depth: 0 };
        let node = parser.or()?;
        match parser.peek() {
            None => Ok(Query(node)),
            Some(token) => Err(QueryError {
                at: token.at,
                message: format!("`{}` is too much; expected `and`, `or` or the end", token.text),
            }),
        }
    }

    /// Whether what it says of an instance can change by a task that comes or goes there.
    pub fn heeds_tasks(&self) -> bool {
        self.0.heeds_tasks()
    }

    /// Whether it selects an instance.
    pub fn selects(&self, instance: &dyn Instance) -> bool {
        self.0.holds(instance)
    }
}

impl Node {
    fn heeds_tasks(&self) -> bool {
        match self {
            Node::Or(nodes) | Node::And(nodes) => nodes.iter().any(Node::heeds_tasks),
            Node::Not(node) => node.heeds_tasks(),
            Node::Is(subject, _) => matches!(subject, Subject::TaskGroup | Subject::RunningTasksCount),
        }
    }

    fn holds(&self, instance: &dyn Instance) -> bool {
        match self {
            Node::Or(nodes) => nodes.iter().any(|node| node.holds(instance)),
            Node::And(nodes) => nodes.iter().all(|node| node.holds(instance)),
            Node::Not(node) => !node.holds(instance),
            Node::Is(Subject::TaskGroup, test) => test.holds_of_groups(instance),
            Node::Is(subject, test) => test.holds(subject, subject.value(instance).as_deref()),
        }
    }
}

impl Subject {
    fn value(&self, instance: &dyn Instance) -> Option<String> {
        let known = |text: String| (!text.is_empty()).then_some(text);
        match self {
            Subject::AgentConnected => Some(instance.agent_connected().to_string()),
            Subject::AgentVersion => known(instance.agent_version().to_owned()),
            Subject::Attribute(name) => instance.attribute(name).map(str::to_owned),
            Subject::InstanceId => Some(instance.id().to_owned()),
            Subject::RegisteredAt => known(instance.registered_at()),
            Subject::RunningTasksCount => Some(instance.running_tasks_count().to_string()),
            Subject::TaskGroup => None,
        }
    }

    fn compare(&self, value: &str, argument: &str) -> Option<Ordering> {
        match self {
            Subject::AgentVersion => Some(version(value).cmp(&version(argument))),
            // Dates as RFC 3339 writes them are in order as texts; the shorter is the beginning of its day.
            Subject::RegisteredAt => Some(value.cmp(argument)),
            _ => match (value.parse::<f64>(), argument.parse::<f64>()) {
                (Ok(value), Ok(argument)) => value.partial_cmp(&argument),
                _ => Some(value.cmp(argument)),
            },
        }
    }
}

fn version(text: &str) -> Vec<u64> {
    let parts = text.trim_start_matches('v').split(['.', '-', '+']);
    parts.map_while(|part| part.parse().ok()).collect()
}

impl Test {
    fn holds(&self, subject: &Subject, value: Option<&str>) -> bool {
        match (self, value) {
            (Test::Exists(wanted), value) => value.is_some() == *wanted,
            // What is not there equals nothing, is in no list and matches nothing.
            (Test::Equals(wanted, _) | Test::In(wanted, _) | Test::Matches(wanted, _), None) => !wanted,
            (Test::Compares(..), None) => false,
            (Test::Equals(wanted, argument), Some(value)) => subject.equal(value, argument) == *wanted,
            (Test::In(wanted, list), Some(value)) => list.iter().any(|one| subject.equal(value, one)) == *wanted,
            (Test::Matches(wanted, regex), Some(value)) => regex.is_match(value) == *wanted,
            (Test::Compares(orderings, argument), Some(value)) => {
                subject.compare(value, argument).is_some_and(|ordering| orderings.contains(&ordering))
            }
        }
    }

    /// An instance has many groups: it satisfies what one of them satisfies, and what is denied must hold for all.
    fn holds_of_groups(&self, instance: &dyn Instance) -> bool {
        match self {
            Test::Exists(wanted) => instance.has_group(&|_| true) == *wanted,
            Test::Equals(wanted, argument) => instance.has_group(&|group| group == argument) == *wanted,
            Test::In(wanted, list) => instance.has_group(&|group| list.iter().any(|one| one == group)) == *wanted,
            Test::Matches(wanted, regex) => instance.has_group(&|group| regex.is_match(group)) == *wanted,
            Test::Compares(orderings, argument) => {
                instance.has_group(&|group| orderings.contains(&group.cmp(argument.as_str())))
            }
        }
    }
}

impl Subject {
    fn equal(&self, value: &str, argument: &str) -> bool {
        match self {
            Subject::AgentVersion => version(value) == version(argument),
            Subject::AgentConnected => value.eq_ignore_ascii_case(argument),
            Subject::RunningTasksCount => self.compare(value, argument) == Some(Ordering::Equal),
            _ => value == argument,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    at: usize,
    text: String,
    quoted: bool,
}

/// Characters that stand for themselves wherever they are.
const SIGNS: &[&str] = &["||", "&&", "==", "!=", ">=", "<=", "=~", "!~", ">", "<", "(", ")", "[", "]", ",", "!"];

fn tokens(text: &str) -> Result<Vec<Token>, QueryError> {
    let characters: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < characters.len() {
        let character = characters[at];
        if character.is_whitespace() {
            at += 1;
        } else if character == '"' || character == '\'' {
            let Some(length) = characters[at + 1..].iter().position(|c| *c == character) else {
                return Err(QueryError { at, message: format!("the text that begins with {character} does not end") });
            };
            let text = characters[at + 1..=at + length].iter().collect();
            tokens.push(Token { at, text, quoted: true });
            at += length + 2;
        } else if let Some(sign) = SIGNS.iter().find(|sign| starts_with(&characters[at..], sign)) {
            tokens.push(Token { at, text: (*sign).to_owned(), quoted: false });
            at += sign.len();
        } else {
            let ends = |(place, c): (usize, &char)| {
                c.is_whitespace() || "\"'()[],".contains(*c) || {
                    let rest = &characters[at + place..];
                    SIGNS.iter().any(|sign| starts_with(rest, sign))
                }
            };
            let rest = characters[at..].iter().enumerate();
            let length =
                rest.skip(1).find(|found| ends((found.0, found.1))).map_or(characters.len() - at, |found| found.0);
            tokens.push(Token { at, text: characters[at..at + length].iter().collect(), quoted: false });
            at += length;
        }
    }
    Ok(tokens)
}

fn starts_with(characters: &[char], sign: &str) -> bool {
    let mut characters = characters.iter();
    sign.chars().all(|wanted| characters.next() == Some(&wanted))
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    /// Characters of the whole expression.
    end: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    /// Takes the next token if it is one of these words.
    fn take(&mut self, words: &[&str]) -> bool {
        let found = self.peek().is_some_and(|token| !token.quoted && words.contains(&token.text.as_str()));
        self.next += usize::from(found);
        found
    }

    fn fault<T>(&self, expected: &str) -> Result<T, QueryError> {
        Err(match self.peek() {
            Some(token) => QueryError { at: token.at, message: format!("expected {expected}, not `{}`", token.text) },
            None => QueryError { at: self.end, message: format!("expected {expected}, and there is nothing more") },
        })
    }

    fn or(&mut self) -> Result<Node, QueryError> {
        let mut nodes = vec![self.and()?];
        while self.take(&["||", "or"]) {
            nodes.push(self.and()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Or(nodes) })
    }

    fn and(&mut self) -> Result<Node, QueryError> {
        let mut nodes = vec![self.not()?];
        while self.take(&["&&", "and"]) {
            nodes.push(self.not()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::And(nodes) })
    }

    fn not(&mut self) -> Result<Node, QueryError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fault(&format!("no more than {MAX_DEPTH} levels"));
        }
        let node = if self.take(&["!", "not"]) {
            Node::Not(Box::new(self.not()?))
        } else if self.take(&["("]) {
            let node = self.or()?;
            if !self.take(&[")"]) {
                return self.fault("`)`");
            }
            node
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn comparison(&mut self) -> Result<Node, QueryError> {
        let subject = self.subject()?;
        let Some(sign) = self.peek().filter(|token| !token.quoted).map(|token| token.text.clone()) else {
            return self.fault("an operator such as `==`, `in` or `exists`");
        };
        // `!exists` and `!in` are two tokens.
        let negated =
            sign == "!" && self.tokens.get(self.next + 1).is_some_and(|t| t.text == "exists" || t.text == "in");
        self.next += usize::from(negated);
        let sign = if negated { format!("!{}", self.tokens[self.next].text) } else { sign };
        let before = self.next;
        self.next += 1;
        let test = match sign.as_str() {
            "==" | "equals" => Test::Equals(true, self.argument()?),
            "!=" | "not_equals" => Test::Equals(false, self.argument()?),
            ">" | "greater_than" => Test::Compares(&[Ordering::Greater], self.argument()?),
            ">=" | "greater_than_equal" => Test::Compares(&[Ordering::Greater, Ordering::Equal], self.argument()?),
            "<" | "less_than" => Test::Compares(&[Ordering::Less], self.argument()?),
            "<=" | "less_than_equal" => Test::Compares(&[Ordering::Less, Ordering::Equal], self.argument()?),
            "exists" => Test::Exists(true),
            "!exists" | "not_exists" => Test::Exists(false),
            "in" => Test::In(true, self.list()?),
            "!in" | "not_in" => Test::In(false, self.list()?),
            "=~" | "matches" => Test::Matches(true, self.regex()?),
            "!~" | "not_matches" => Test::Matches(false, self.regex()?),
            _ => {
                self.next = before;
                return self.fault("an operator: == != > >= < <= in !in =~ !~ exists !exists");
            }
        };
        Ok(Node::Is(subject, test))
    }

    fn subject(&mut self) -> Result<Subject, QueryError> {
        const EXPECTED: &str = "agentConnected, agentVersion, attribute:NAME, ec2InstanceId, registeredAt, \
                                runningTasksCount or task:group";
        let Some(token) = self.peek().filter(|token| !token.quoted) else { return self.fault(EXPECTED) };
        let subject = match token.text.as_str() {
            "agentConnected" => Subject::AgentConnected,
            "agentVersion" => Subject::AgentVersion,
            "ec2InstanceId" => Subject::InstanceId,
            "registeredAt" => Subject::RegisteredAt,
            "runningTasksCount" => Subject::RunningTasksCount,
            "task:group" => Subject::TaskGroup,
            other => match other.strip_prefix("attribute:") {
                Some(name) if !name.is_empty() => Subject::Attribute(name.to_owned()),
                _ => return self.fault(EXPECTED),
            },
        };
        self.next += 1;
        Ok(subject)
    }

    fn argument(&mut self) -> Result<String, QueryError> {
        match self.peek().filter(|token| token.quoted || !SIGNS.contains(&token.text.as_str())) {
            Some(token) => {
                let text = token.text.clone();
                self.next += 1;
                Ok(text)
            }
            None => self.fault("a value; put it into quotes if it has spaces or signs"),
        }
    }

    fn list(&mut self) -> Result<Vec<String>, QueryError> {
        if !self.take(&["["]) {
            return self.fault("a list such as [a, b]");
        }
        let mut list = vec![self.argument()?];
        while self.take(&[","]) {
            list.push(self.argument()?);
        }
        if self.take(&["]"]) { Ok(list) } else { self.fault("`,` or `]`") }
    }

    /// The whole value has to match.
    fn regex(&mut self) -> Result<Regex, QueryError> {
        let at = self.peek().map_or(self.end, |token| token.at);
        let text = self.argument()?;
        Regex::new(&format!("^(?:{text})$"))
            .map_err(|error| QueryError { at, message: format!("`{text}` is no regular expression: {error}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine;

    impl Instance for Machine {
        fn agent_connected(&self) -> bool {
            true
        }
        fn agent_version(&self) -> &'static str {
            "1.10.2"
        }
        fn attribute(&self, name: &str) -> Option<&str> {
            match name {
                "stack" => Some("prod"),
                "ecs.instance-type" => Some("t2.small"),
                "empty" => Some(""),
                "disks" => Some("12"),
                _ => None,
            }
        }
        fn id(&self) -> &'static str {
            "node-1"
        }
        fn registered_at(&self) -> String {
            "2026-06-18T10:00:00Z".into()
        }
        fn running_tasks_count(&self) -> usize {
            3
        }
        fn has_group(&self, which: &dyn Fn(&str) -> bool) -> bool {
            ["service:web", "family:db"].into_iter().any(which)
        }
    }

    #[test]
    fn an_expression_selects_what_it_says() {
        let yes = [
            "attribute:stack == prod",
            "attribute:stack equals 'prod'",
            "attribute:stack != test",
            "attribute:other != test",
            "attribute:empty exists",
            "attribute:other !exists",
            "attribute:other not_exists",
            "attribute:ecs.instance-type =~ t2.*",
            "attribute:ecs.instance-type !~ \"small\"",
            "attribute:ecs.instance-type =~ '(?i)T\\d[.]\\w+'",
            "attribute:ecs.instance-type in [t2.micro, t2.small]",
            "attribute:ecs.instance-type !in [t2.micro]",
            "attribute:disks > 9",
            "agentVersion >= 1.9.0",
            "agentVersion < 1.11",
            "agentConnected == true",
            "ec2InstanceId == node-1",
            "registeredAt > 2026-06-17",
            "registeredAt < 2026-06-18T12:00:00Z",
            "runningTasksCount <= 3",
            "task:group == service:web",
            "not(task:group == databases)",
            "task:group != databases",
            "!(attribute:stack == test) and (attribute:stack==prod || attribute:other exists)",
            "attribute:other exists or attribute:stack == prod and runningTasksCount > 1",
        ];
        for expression in yes {
            let query = Query::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
            assert!(query.selects(&Machine), "{expression}");
            let query = Query::parse(&format!("not ({expression})")).expect("understood");
            assert!(!query.selects(&Machine), "not ({expression})");
        }
    }

    #[test]
    fn what_is_not_understood_is_told_with_its_place() {
        let told = |expression: &str| Query::parse(expression).expect_err(expression).to_string();
        let wrong = [
            ("", "expected agentConnected, agentVersion, attribute:NAME"),
            ("atribute:stack == prod", "not `atribute:stack` at character 1"),
            ("attribute:stack = prod", "expected an operator"),
            (
                "attribute:stack ==",
                "expected a value; put it into quotes if it has spaces or signs, and there is nothing more",
            ),
            ("attribute:stack == prod attribute:x exists", "`attribute:x` is too much"),
            ("(attribute:stack == prod", "expected `)`, and there is nothing more at character 25"),
            ("attribute:stack in prod", "expected a list such as [a, b], not `prod` at character 20"),
            ("attribute:stack in [prod", "expected `,` or `]`"),
            ("attribute:stack == 'prod", "does not end at character 20"),
            ("attribute:stack =~ '['", "is no regular expression"),
        ];
        for (expression, message) in wrong {
            assert!(told(expression).contains(message), "{expression}: {}", told(expression));
        }
        assert!(told(&"!".repeat(100)).contains("levels"));
        assert!(told(&"x".repeat(2001)).contains("at most 2000"));
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        let parts = [
            "attribute:a",
            "==",
            "!",
            "(",
            ")",
            "[",
            "]",
            ",",
            "in",
            "exists",
            "'",
            "\"",
            "and",
            "or",
            "é",
            " ",
            "=~",
            "*",
        ];
        let mut state: u64 = 42;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text.push_str(parts[(state >> 33) as usize % parts.len()]);
            }
            if let Ok(query) = Query::parse(&text) {
                query.selects(&Machine);
            }
        }
    }
}
