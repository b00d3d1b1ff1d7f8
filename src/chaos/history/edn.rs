//! Histories as Jepsen writes them: an event a line, as EDN. Owns: that format, and as much of EDN as it needs.
//! Always: what was written is read back as the same history, and written again as the same bytes. A file is untrusted:
//! it gives a history or an error with a line, whatever is in it.
//! Not here: the rules of a history (`recorder.rs`).

use std::io::{self, Write};

use super::recorder::Log;
use super::{Answer, Call, Event, History, Misuse, Phase, Process};

/// How deep vectors and maps may stand in each other; an event needs four levels.
const DEPTH_MAX: usize = 16;

/// The key of events that name none, as histories of a single register do.
const ONLY_KEY: &str = "register";

const NANOS_PER_MS: u64 = 1_000_000;

/// Writes each event as a line:
///
/// ```clojure
/// {:index 4, :time 1203000000, :process 3, :type :invoke, :f :cas, :value ["k" [1 2]], :key "k"}
/// ```
///
/// `:type` is `:invoke`, `:ok`, `:fail` (surely without effect) or `:info` (outcome unknown); `:f` is `:read`, `:write`
/// or `:cas`; `:value` is the key, always a string, with what was read (`nil`: nothing, or not known yet), with what is
/// written, or with what a cas expects and puts. `:time` is in nanoseconds. An operation that was never answered has no
/// second event.
///
/// # Errors
/// What `to` says.
pub fn write_edn(history: &History, mut to: impl Write) -> io::Result<()> {
    for event in history.events() {
        let (kind, seen) = match event.phase {
            Phase::Asked => ("invoke", None),
            Phase::Answered(Answer::Value(seen)) => ("ok", seen),
            Phase::Answered(Answer::Done) => ("ok", None),
            Phase::Answered(Answer::Failed) => ("fail", None),
            Phase::Answered(Answer::Unknown) => ("info", None),
        };
        let (f, value) = match event.call {
            Call::Read => ("read", seen.map_or_else(|| "nil".to_owned(), |value| value.to_string())),
            Call::Write(value) => ("write", value.to_string()),
            Call::Cas { from, to } => ("cas", format!("[{from} {to}]")),
        };
        let Event { index, process: Process(process), .. } = event;
        let time = event.time_ms.saturating_mul(NANOS_PER_MS);
        let key = quoted(&event.key);
        writeln!(
            to,
            "{{:index {index}, :time {time}, :process {process}, :type :{kind}, :f :{f}, :value [{key} {value}], \
             :key {key}}}"
        )?;
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Reads what [`write_edn`] writes, and what others write of registers: events may stand in a vector or one after
/// another, `:index` and `:time` may be missing, a key may be a whole number (`7` is then the key `"7"`), and without
/// any key all is one register. Events of `:process :nemesis` are passed over, other parts of an event too.
///
/// # Errors
/// [`EdnError`] with the line of the first event that is none or breaks the rules of a history.
pub fn read_edn(text: &str) -> Result<History, EdnError> {
    let mut reader = Reader { rest: text, line: 1 };
    let mut log = Log::default();
    let mut next = 0;
    while let Some(at) = reader.skip() {
        let fail = |problem| EdnError { line: at, problem };
        let form = reader.form(0)?;
        let forms = if let Form::List(forms) = form { forms } else { vec![form] };
        for form in &forms {
            let Some(event) = event(form, next, &log).map_err(fail)? else { continue };
            next = event.index.saturating_add(1);
            log.push(event).map_err(|misuse| fail(Problem::Misuse(misuse)))?;
        }
    }
    Ok(log.into_history())
}

/// Why a text is no history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct EdnError {
    /// Where the form begins.
    pub line: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a form or an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The text ends inside of a form.
    #[error("the text ends inside of a form")]
    Ends,
    /// A character that begins or ends nothing that is read here.
    #[error("{0:?} is not expected here")]
    Unexpected(char),
    /// A map with a key and no value.
    #[error("a map has a key without a value")]
    Odd,
    /// Forms in forms in forms.
    #[error("forms stand in each other more than {DEPTH_MAX} deep")]
    Deep,
    /// A part of an event is missing or is none that it can be.
    #[error("an event needs {0}")]
    Needs(&'static str),
    /// It breaks a rule of histories.
    #[error(transparent)]
    Misuse(#[from] Misuse),
}

/// A piece of EDN.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Nil,
    Number(u64),
    Text(String),
    Keyword(String),
    List(Vec<Form>),
    Map(Vec<(Form, Form)>),
    /// Symbols, other numbers: nothing that a history needs.
    Other,
}

impl Form {
    fn get(&self, name: &str) -> Option<&Form> {
        let Form::Map(entries) = self else { return None };
        entries.iter().find(|(key, _)| matches!(key, Form::Keyword(key) if key == name)).map(|(_, value)| value)
    }

    fn number(&self) -> Option<u64> {
        if let Form::Number(number) = self { Some(*number) } else { None }
    }

    fn keyword(&self) -> Option<&str> {
        if let Form::Keyword(name) = self { Some(name) } else { None }
    }

    /// As the key of a register.
    fn key(&self) -> Option<String> {
        match self {
            Form::Text(key) => Some(key.clone()),
            Form::Number(key) => Some(key.to_string()),
            Form::Nil | Form::Keyword(_) | Form::List(_) | Form::Map(_) | Form::Other => None,
        }
    }

    fn pair(&self) -> Option<(&Form, &Form)> {
        if let Form::List(forms) = self
            && let [first, second] = forms.as_slice()
        {
            Some((first, second))
        } else {
            None
        }
    }
}

/// The event that `form` is; `None` if it is nobody's call.
fn event(form: &Form, next: u64, log: &Log) -> Result<Option<Event>, Problem> {
    let process = match form.get("process") {
        Some(Form::Number(process)) => Process(*process),
        Some(Form::Keyword(_)) => return Ok(None),
        _ => return Err(Problem::Needs(":process with a number")),
    };
    let kind = form.get("type").and_then(Form::keyword).ok_or(Problem::Needs(":type with a keyword"))?;
    let f = form.get("f").and_then(Form::keyword).ok_or(Problem::Needs(":f with a keyword"))?;
    let (key, value) = key_and_value(form, f)?;
    let open = log.open(process).filter(|(of, call)| *of == key && name(*call) == f);
    let (call, phase) = match (kind, open) {
        ("invoke", _) => (call(f, value)?, Phase::Asked),
        ("ok" | "fail" | "info", None) => return Err(Misuse::NotOpen(process).into()),
        ("ok", Some((_, Call::Read))) => (Call::Read, Phase::Answered(Answer::Value(seen(value)?))),
        ("ok", Some((_, call))) => (*call, Phase::Answered(Answer::Done)),
        ("fail", Some((_, call))) => (*call, Phase::Answered(Answer::Failed)),
        ("info", Some((_, call))) => (*call, Phase::Answered(Answer::Unknown)),
        _ => return Err(Problem::Needs(":type with :invoke, :ok, :fail or :info")),
    };
    let index = form.get("index").map_or(Some(next), Form::number).ok_or(Problem::Needs("a number for its :index"))?;
    let time = form.get("time").map_or(Some(0), Form::number).ok_or(Problem::Needs("a number for its :time"))?;
    Ok(Some(Event { index, time_ms: time / NANOS_PER_MS, process, key, call, phase }))
}

/// A pair is a key and a value, but for a cas only if the value is a pair again.
fn key_and_value<'a>(form: &'a Form, f: &str) -> Result<(String, &'a Form), Problem> {
    let whole = form.get("value").unwrap_or(&Form::Nil);
    let pair = whole.pair().filter(|(_, value)| f != "cas" || value.pair().is_some());
    let key_of = |form: &Form| form.key().ok_or(Problem::Needs("a string or whole number as its key"));
    let named = form.get("key").map(key_of).transpose()?;
    match (pair, named) {
        (None, named) => Ok((named.unwrap_or_else(|| ONLY_KEY.to_owned()), whole)),
        (Some((key, value)), named) => {
            let key = key_of(key)?;
            if named.is_some_and(|named| named != key) {
                return Err(Problem::Needs("the same key in :value and :key"));
            }
            Ok((key, value))
        }
    }
}

fn name(call: Call) -> &'static str {
    match call {
        Call::Read => "read",
        Call::Write(_) => "write",
        Call::Cas { .. } => "cas",
    }
}

fn call(f: &str, value: &Form) -> Result<Call, Problem> {
    match f {
        "read" => Ok(Call::Read),
        "write" => value.number().map(Call::Write).ok_or(Problem::Needs("a whole number to write, from 0 up")),
        "cas" => {
            let pair = value.pair().and_then(|(from, to)| Some((from.number()?, to.number()?)));
            pair.map(|(from, to)| Call::Cas { from, to }).ok_or(Problem::Needs("two whole numbers for :cas, from 0 up"))
        }
        _ => Err(Problem::Needs(":f with :read, :write or :cas")),
    }
}

fn seen(value: &Form) -> Result<Option<u64>, Problem> {
    match value {
        Form::Nil => Ok(None),
        Form::Number(value) => Ok(Some(*value)),
        Form::Text(_) | Form::Keyword(_) | Form::List(_) | Form::Map(_) | Form::Other => {
            Err(Problem::Needs("nil or a whole number, from 0 up, as what was read"))
        }
    }
}

/// Takes forms off a text.
struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl Reader<'_> {
    /// Passes over what is between forms; the line of the next one, or `None` at the end.
    fn skip(&mut self) -> Option<usize> {
        loop {
            match self.rest.chars().next()? {
                ';' => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                c if c == ',' || c.is_whitespace() => {
                    self.take();
                }
                _ => return Some(self.line),
            }
        }
    }

    fn take(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn fail<T>(&self, problem: Problem) -> Result<T, EdnError> {
        Err(EdnError { line: self.line, problem })
    }

    fn form(&mut self, depth: usize) -> Result<Form, EdnError> {
        if depth > DEPTH_MAX {
            return self.fail(Problem::Deep);
        }
        self.skip();
        match self.rest.chars().next() {
            None => self.fail(Problem::Ends),
            Some('[') => Ok(Form::List(self.forms(']', depth)?)),
            Some('(') => Ok(Form::List(self.forms(')', depth)?)),
            Some('{') => {
                let mut forms = self.forms('}', depth)?.into_iter();
                let mut entries = Vec::new();
                while let Some(key) = forms.next() {
                    match forms.next() {
                        Some(value) => entries.push((key, value)),
                        None => return self.fail(Problem::Odd),
                    }
                }
                Ok(Form::Map(entries))
            }
            Some('"') => self.text(),
            Some('#') => self.tagged(depth),
            Some(c @ (']' | ')' | '}' | '\\')) => self.fail(Problem::Unexpected(c)),
            Some(_) => Ok(self.word()),
        }
    }

    fn forms(&mut self, end: char, depth: usize) -> Result<Vec<Form>, EdnError> {
        self.take();
        let mut forms = Vec::new();
        loop {
            self.skip();
            if self.rest.starts_with(end) {
                self.take();
                return Ok(forms);
            }
            forms.push(self.form(depth + 1)?);
        }
    }

    fn text(&mut self) -> Result<Form, EdnError> {
        self.take();
        let mut text = String::new();
        loop {
            match self.take() {
                None => return self.fail(Problem::Ends),
                Some('"') => return Ok(Form::Text(text)),
                Some('\\') => text.push(match self.take() {
                    None => return self.fail(Problem::Ends),
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some('t') => '\t',
                    Some(c @ ('"' | '\\')) => c,
                    Some(c) => return self.fail(Problem::Unexpected(c)),
                }),
                Some(c) => text.push(c),
            }
        }
    }

    /// A set, or a form behind its tag, as in `#jepsen.history.Op{:index 0}`: the tag says nothing here.
    fn tagged(&mut self, depth: usize) -> Result<Form, EdnError> {
        self.take();
        match self.rest.chars().next() {
            Some('{') => Ok(Form::List(self.forms('}', depth)?)),
            Some(c) if c.is_alphabetic() => {
                self.word();
                self.form(depth + 1)
            }
            Some(c) => self.fail(Problem::Unexpected(c)),
            None => self.fail(Problem::Ends),
        }
    }

    /// A keyword, a number, `nil` or a word that says nothing here.
    fn word(&mut self) -> Form {
        let ends = |c: char| c.is_whitespace() || ",;()[]{}\"".contains(c);
        let (word, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest;
        match (word, word.strip_prefix(':')) {
            ("nil", _) => Form::Nil,
            (_, Some(name)) => Form::Keyword(name.to_owned()),
            _ if word.starts_with('+') => Form::Other,
            _ => word.parse().map_or(Form::Other, Form::Number),
        }
    }
}
