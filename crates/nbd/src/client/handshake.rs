//! The client's side of the handshake (`doc/proto.md`, "Fixed newstyle negotiation", "Client-side requirements").

use std::collections::VecDeque;

use super::options::{
    Collected, DOING, ListedExport, MAX_OPTION_REPLIES_LEN, ReplyHeader, listed_export,
    meta_context, put_option,
};
use super::question::{Answer, Question, checked};
use crate::error::{Error, ErrorKind};
use crate::export::{ExportInfo, MetaContext};
use crate::wire::{
    CLISERV_MAGIC, ClientFlags, EXPORT_NAME_REPLY_LEN, EXPORT_NAME_ZEROES, GREETING_LEN,
    HandshakeFlags, HeaderStyle, INIT_PASSWD, OPTION_MAGIC, OPTION_REPLY_HEADER_LEN, Opt, Reader,
    ReplyType, TransmissionFlags,
};

/// Whether to speak TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// No.
    Off,
    /// If the server can. Whoever sits in between can prevent it ("Protocol downgrade attacks").
    Allow,
    /// Or else not at all.
    Require,
}

/// How a client negotiates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether to speak TLS.
    pub tls: TlsMode,
    /// The best headers to ask for; a server that lacks them gets the next best.
    pub best_style: HeaderStyle,
}

impl Default for Config {
    /// No TLS, all headers.
    fn default() -> Self {
        Self { tls: TlsMode::Off, best_style: HeaderStyle::Extended }
    }
}

/// What has come of the questions, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Send what [`Handshake::poll_transmit`] gives, run the TLS handshake, then call
    /// [`Handshake::tls_started`] and go on inside TLS. Bytes not taken by [`Handshake::receive`] belong to TLS.
    StartTls,
    /// Answer to [`Handshake::list`].
    Exports(Vec<ListedExport>),
    /// Answer to [`Handshake::info`].
    Info(Box<ExportInfo>),
    /// Answer to [`Handshake::list_contexts`]: names, or wildcards that a server gives for many of them.
    Contexts(Vec<String>),
    /// Answer to [`Handshake::set_contexts`]: what the server selected, maybe nothing.
    ContextsSet(Vec<MetaContext>),
    /// The server answered a question with an error. The handshake goes on: ask something else, or
    /// [`abort`](Handshake::abort), which is due after `NBD_REP_ERR_SHUTDOWN`.
    Refused(Error),
    /// Answer to [`Handshake::go`]: the transmission phase begins with the next byte.
    Done(Box<Negotiated>),
    /// Answer to [`Handshake::abort`]: close the connection.
    Aborted,
}

/// The result of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// What the server says of the export.
    pub export: ExportInfo,
    /// The headers of all messages from here on.
    pub style: HeaderStyle,
    /// The contexts that BLOCK_STATUS answers for.
    pub contexts: Vec<MetaContext>,
    /// Whether TLS is spoken.
    pub tls: bool,
}

/// One connection to a server before its transmission phase.
///
/// Ask with [`list`](Self::list), [`info`](Self::info), [`go`](Self::go) and so on, at any time; questions
/// are put to the server one after the other, TLS and headers before all others. Feed
/// [`receive`](Self::receive), send what [`poll_transmit`](Self::poll_transmit) gives, and take the answers
/// from [`poll_event`](Self::poll_event). It stores at most [`MAX_OPTION_REPLIES_LEN`] bytes of answers.
#[derive(Debug)]
pub struct Handshake {
    tls_mode: TlsMode,
    state: State,
    questions: VecDeque<Question>,
    input: Vec<u8>,
    output: Vec<u8>,
    events: VecDeque<Event>,
    server_flags: HandshakeFlags,
    tls: bool,
    style: HeaderStyle,
    /// The export of the last SET_META_CONTEXT, and what it selected.
    contexts: (String, Vec<MetaContext>),
}

#[derive(Debug)]
enum State {
    Greeting,
    Idle,
    Waiting { question: Question, answer: Box<Answer>, header: Option<ReplyHeader> },
    ExportName(String),
    StartingTls,
    Finished,
}

impl Handshake {
    /// A connection that was just made.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mut questions = VecDeque::new();
        if config.tls != TlsMode::Off {
            questions.push_back(Question::StartTls);
        }
        if config.best_style.has_chunks() {
            questions.push_back(Question::Style(config.best_style));
        }
        Self {
            tls_mode: config.tls,
            state: State::Greeting,
            questions,
            input: Vec::new(),
            output: Vec::new(),
            events: VecDeque::new(),
            server_flags: HandshakeFlags::empty(),
            tls: false,
            style: HeaderStyle::Simple,
            contexts: (String::new(), Vec::new()),
        }
    }

    /// Asks for the names of the exports.
    pub fn list(&mut self) {
        self.ask(Question::List);
    }

    /// Asks about an export; the empty name is that of the default one.
    ///
    /// # Errors
    ///
    /// A name that the protocol cannot carry.
    pub fn info(&mut self, export: &str) -> Result<(), Error> {
        self.ask(Question::Info(checked(export)?));
        Ok(())
    }

    /// Asks for the metadata contexts of an export that match one of the queries, or for all without any.
    ///
    /// # Errors
    ///
    /// A name or a query that the protocol cannot carry.
    pub fn list_contexts(&mut self, export: &str, queries: &[&str]) -> Result<(), Error> {
        let queries = queries.iter().map(|query| checked(query)).collect::<Result<_, _>>()?;
        self.ask(Question::ListContexts(checked(export)?, queries));
        Ok(())
    }

    /// Selects metadata contexts of an export, in place of those before. They count if it is opened by the same name.
    ///
    /// # Errors
    ///
    /// A name or a query that the protocol cannot carry.
    pub fn set_contexts(&mut self, export: &str, queries: &[&str]) -> Result<(), Error> {
        let queries = queries.iter().map(|query| checked(query)).collect::<Result<_, _>>()?;
        self.ask(Question::SetContexts(checked(export)?, queries));
        Ok(())
    }

    /// Opens an export, with `NBD_OPT_EXPORT_NAME` if the server has nothing better: then it closes the connection
    /// if it has no such export.
    ///
    /// # Errors
    ///
    /// A name that the protocol cannot carry.
    pub fn go(&mut self, export: &str) -> Result<(), Error> {
        self.ask(Question::Go(checked(export)?));
        Ok(())
    }

    /// Says goodbye. A server may close the connection without an answer.
    pub fn abort(&mut self) {
        self.ask(Question::Abort);
    }

    /// Takes bytes from the server, and returns how many. It stops early when there is something to send or an
    /// event: see to them, and give it the rest. After [`Event::Done`] the rest are replies to requests.
    ///
    /// # Errors
    ///
    /// The connection must be closed.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let mut rest = bytes;
        let result = self.advance(&mut rest);
        if result.is_err() {
            self.state = State::Finished;
        }
        result.map(|()| bytes.len() - rest.len())
    }

    /// Appends what is to be sent to the server to `out`, and says whether there was any.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> bool {
        let any = !self.output.is_empty();
        out.append(&mut self.output);
        any
    }

    /// The next answer.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The TLS handshake that [`Event::StartTls`] asked for has succeeded.
    ///
    /// # Panics
    ///
    /// If it was not asked for.
    pub fn tls_started(&mut self) {
        assert!(matches!(self.state, State::StartingTls), "TLS was not agreed on");
        self.tls = true;
        self.next_question();
    }

    fn ask(&mut self, question: Question) {
        self.questions.push_back(question);
        if matches!(self.state, State::Idle) {
            self.next_question();
        }
    }

    fn advance(&mut self, rest: &mut &[u8]) -> Result<(), Error> {
        while self.events.is_empty() && self.output.is_empty() {
            let want = match &self.state {
                State::Greeting => GREETING_LEN,
                State::Waiting { header: None, .. } => OPTION_REPLY_HEADER_LEN,
                State::Waiting { header: Some(header), .. } => {
                    usize::try_from(header.len).unwrap_or(usize::MAX)
                }
                State::ExportName(_) if self.server_flags.contains(HandshakeFlags::NO_ZEROES) => {
                    EXPORT_NAME_REPLY_LEN
                }
                State::ExportName(_) => EXPORT_NAME_REPLY_LEN + EXPORT_NAME_ZEROES,
                State::Idle => match rest.first() {
                    None => break,
                    Some(&byte) => {
                        let rule = "the server sent a byte unasked";
                        return Err(Error::violation(DOING, rule, byte.into()));
                    }
                },
                State::StartingTls | State::Finished => break,
            };
            let missing = want.saturating_sub(self.input.len()).min(rest.len());
            let (head, tail) = rest.split_at(missing);
            self.input.extend_from_slice(head);
            *rest = tail;
            if self.input.len() < want {
                break;
            }
            let message = std::mem::take(&mut self.input);
            self.on_message(&message)?;
        }
        Ok(())
    }

    fn on_message(&mut self, message: &[u8]) -> Result<(), Error> {
        match std::mem::replace(&mut self.state, State::Finished) {
            State::Greeting => self.on_greeting(message),
            State::Waiting { question, mut answer, header: None } => {
                let header = ReplyHeader::parse(message, question.option())?;
                let len = message.len() + usize::try_from(header.len).unwrap_or(usize::MAX);
                answer.budget = answer.budget.checked_sub(len).ok_or_else(|| {
                    let limit = MAX_OPTION_REPLIES_LEN.try_into().unwrap_or(u64::MAX);
                    let what = "the length in bytes of all replies to an option";
                    Error::too_big(DOING, what, limit + 1, limit)
                })?;
                self.state = State::Waiting { question, answer, header: Some(header) };
                Ok(())
            }
            State::Waiting { question, answer, header: Some(header) } => {
                self.on_reply(question, answer, header.kind, message)
            }
            State::ExportName(name) => {
                self.on_export_name(&name, message);
                Ok(())
            }
            state => {
                self.state = state;
                Ok(())
            }
        }
    }

    fn on_greeting(&mut self, greeting: &[u8]) -> Result<(), Error> {
        let mut r = Reader::new(greeting);
        let mut magic = |expected| match r.u64().unwrap_or(0) {
            got if got == expected => Ok(()),
            CLISERV_MAGIC => {
                let reason =
                    "the server speaks oldstyle NBD, which names no exports; use a newer one";
                Err(Error::new(DOING, ErrorKind::Policy(reason)))
            }
            got => Err(Error::new(DOING, ErrorKind::BadMagic { expected, got })),
        };
        magic(INIT_PASSWD)?;
        magic(OPTION_MAGIC)?;
        self.server_flags = HandshakeFlags::from_bits_retain(r.u16().unwrap_or(0));
        let mut flags = ClientFlags::empty();
        if self.server_flags.contains(HandshakeFlags::NO_ZEROES) {
            flags |= ClientFlags::NO_ZEROES;
        }
        if self.server_flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            flags |= ClientFlags::FIXED_NEWSTYLE;
        } else if self.tls_mode == TlsMode::Require {
            let reason = "TLS is required, but the server does not speak fixed newstyle";
            return Err(Error::new(DOING, ErrorKind::Policy(reason)));
        }
        self.output.extend_from_slice(&flags.bits().to_be_bytes());
        self.next_question();
        Ok(())
    }

    /// Puts the next question to the server. What it cannot know is refused at once.
    fn next_question(&mut self) {
        self.state = State::Idle;
        while let Some(question) = self.questions.pop_front() {
            let question = match self.adapt(question) {
                Ok(question) => question,
                Err(refused) => {
                    self.events.extend(refused);
                    continue;
                }
            };
            let option = question.option();
            put_option(&mut self.output, option, &question.data());
            self.state = match question {
                Question::ExportName(name) => State::ExportName(name),
                Question::Info(ref name) | Question::Go(ref name) => {
                    Self::waiting(question.clone(), name.clone())
                }
                question => Self::waiting(question, String::new()),
            };
            return;
        }
    }

    fn waiting(question: Question, name: String) -> State {
        let answer = Box::new(Answer::new(name));
        State::Waiting { question, answer, header: None }
    }

    /// The question in a form that the server can take, or why there is none.
    fn adapt(&self, question: Question) -> Result<Question, Option<Event>> {
        let fixed = self.server_flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
        let unsupported = |question: &Question, message: &str| {
            refused(question.option(), ReplyType::ERR_UNSUP, message.to_owned())
        };
        match question {
            Question::Go(name) if !fixed => Ok(Question::ExportName(name)),
            Question::StartTls | Question::Style(_) if !fixed => Err(None),
            Question::ExportName(_) => Ok(question),
            _ if !fixed => {
                Err(Some(unsupported(&question, "the server does not speak fixed newstyle")))
            }
            // "This option MUST NOT be requested unless structured replies or extended headers have been negotiated."
            Question::SetContexts(..) if !self.style.has_chunks() => {
                Err(Some(unsupported(&question, "the server has no structured replies")))
            }
            _ => Ok(question),
        }
    }

    fn on_reply(
        &mut self,
        question: Question,
        mut answer: Box<Answer>,
        kind: ReplyType,
        data: &[u8],
    ) -> Result<(), Error> {
        if kind.is_error() {
            return self.on_error(question, kind, data);
        }
        match (kind, &question) {
            (ReplyType::ACK, _) => return self.on_ack(question, *answer),
            (ReplyType::SERVER, Question::List) => answer.exports.push(listed_export(data)?),
            (ReplyType::INFO, Question::Info(_) | Question::Go(_)) => answer.info.add(data)?,
            (ReplyType::META_CONTEXT, Question::ListContexts(..)) => {
                answer.contexts.push(meta_context(data)?);
            }
            (ReplyType::META_CONTEXT, Question::SetContexts(_, queries)) => {
                let context = meta_context(data)?;
                let twice = answer.contexts.iter().any(|other| other.id == context.id);
                if twice || answer.contexts.len() == queries.len() {
                    let rule = "the server selected a context twice, or more than asked for";
                    return Err(Error::violation(DOING, rule, context.id.into()));
                }
                answer.contexts.push(context);
            }
            _ => {
                let rule = "the server sent a reply of a kind that does not answer the option";
                return Err(Error::violation(DOING, rule, kind.0.into()));
            }
        }
        self.state = State::Waiting { question, answer, header: None };
        Ok(())
    }

    fn on_ack(&mut self, question: Question, answer: Answer) -> Result<(), Error> {
        let names = |contexts: Vec<MetaContext>| contexts.into_iter().map(|c| c.name).collect();
        let event = match question {
            Question::StartTls => {
                self.state = State::StartingTls;
                self.events.push_back(Event::StartTls);
                return Ok(());
            }
            Question::Abort => {
                self.events.push_back(Event::Aborted);
                return Ok(());
            }
            Question::Info(_) | Question::Go(_) if !answer.info.complete => {
                let rule = "the server accepted an export without NBD_INFO_EXPORT";
                return Err(Error::violation(DOING, rule, ReplyType::ACK.0.into()));
            }
            Question::Go(name) => {
                self.finish(&name, answer.info.info);
                return Ok(());
            }
            Question::ExportName(_) => return Ok(()),
            Question::Style(style) => {
                self.style = style;
                None
            }
            Question::List => Some(Event::Exports(answer.exports)),
            Question::Info(_) => Some(Event::Info(Box::new(answer.info.info))),
            Question::ListContexts(..) => Some(Event::Contexts(names(answer.contexts))),
            Question::SetContexts(export, _) => {
                self.contexts = (export, answer.contexts.clone());
                Some(Event::ContextsSet(answer.contexts))
            }
        };
        self.events.extend(event);
        self.next_question();
        Ok(())
    }

    fn on_error(&mut self, question: Question, kind: ReplyType, data: &[u8]) -> Result<(), Error> {
        let message = String::from_utf8_lossy(data).into_owned();
        match question {
            Question::StartTls if self.tls_mode == TlsMode::Require => {
                let kind = ErrorKind::Refused { option: Opt::STARTTLS, reply: kind, message };
                return Err(Error::new("asking for TLS, which is required", kind));
            }
            Question::StartTls | Question::Style(HeaderStyle::Structured | HeaderStyle::Simple) => {
            }
            Question::Style(HeaderStyle::Extended) => {
                self.questions.push_front(Question::Style(HeaderStyle::Structured));
            }
            // "If the server has acknowledged extended headers, it MUST NOT fail NBD_OPT_GO with NBD_REP_ERR_UNSUP."
            Question::Go(name)
                if kind == ReplyType::ERR_UNSUP && self.style != HeaderStyle::Extended =>
            {
                self.questions.push_front(Question::ExportName(name));
            }
            Question::Abort => {
                self.events.push_back(Event::Aborted);
                return Ok(());
            }
            other => {
                if matches!(other, Question::SetContexts(..)) {
                    self.contexts.1.clear();
                }
                self.events.push_back(refused(other.option(), kind, message));
            }
        }
        self.next_question();
        Ok(())
    }

    fn on_export_name(&mut self, name: &str, message: &[u8]) {
        let mut r = Reader::new(message);
        let size = r.u64().unwrap_or(0);
        let flags = TransmissionFlags::from_bits_retain(r.u16().unwrap_or(0));
        let mut info = Collected::new(name.to_owned()).info;
        (info.size, info.flags) = (size, flags);
        self.finish(name, info);
    }

    fn finish(&mut self, name: &str, export: ExportInfo) {
        let (of, contexts) = std::mem::take(&mut self.contexts);
        let contexts = if of == name { contexts } else { Vec::new() };
        let negotiated = Negotiated { export, style: self.style, contexts, tls: self.tls };
        self.state = State::Finished;
        self.events.push_back(Event::Done(Box::new(negotiated)));
    }
}

fn refused(option: Opt, reply: ReplyType, message: String) -> Event {
    let kind = ErrorKind::Refused { option, reply, message };
    Event::Refused(Error::new(DOING, kind))
}
