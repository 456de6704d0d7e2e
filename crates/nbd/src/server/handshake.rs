//! The server's side of the handshake (`doc/proto.md`, "Fixed newstyle negotiation", "TLS support").

use super::exports::{Export, Exports, Refusal};
use super::options::{Answer, ContextRequest, InfoRequest, Replies, export_name};
use crate::error::{Error, ErrorKind};
use crate::export::MetaContext;
use crate::wire::{
    CLIENT_FLAGS_LEN, ClientFlags, EXPORT_NAME_ZEROES, HEARS_SHUTDOWN, HandshakeFlags, HeaderStyle,
    INIT_PASSWD, InfoType, OPTION_HEADER_LEN, OPTION_MAGIC, Opt, Reader, ReplyType,
    TransmissionFlags,
};

/// Most bytes of option data that are stored. Longer options are skipped and refused.
pub const MAX_OPTION_LEN: u32 = 64 << 10;
/// Most bytes of option data that are skipped. A longer option ends the connection.
pub const MAX_SKIPPED_LEN: u32 = 1 << 20;
/// Most options before the transmission phase. One more ends the connection.
pub const MAX_OPTIONS: u32 = 1024;

const DOING: &str = "negotiating with a client";
const NO_DATA: Answer = (ReplyType::ERR_INVALID, "this option takes no data");

/// When TLS is spoken ("Server-side requirements").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPolicy {
    /// Never (NOTLS).
    Off,
    /// If the client asks, and for exports that are TLS-only (SELECTIVETLS).
    Allow,
    /// Before anything else (FORCEDTLS).
    Require,
}

/// How a server negotiates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// When TLS is spoken.
    pub tls: TlsPolicy,
    /// The best headers that a client may have.
    pub best_style: HeaderStyle,
}

impl Default for Config {
    /// No TLS, all headers.
    fn default() -> Self {
        Self { tls: TlsPolicy::Off, best_style: HeaderStyle::Extended }
    }
}

/// What the owner of the connection has to do next. Send what [`Handshake::poll_transmit`] gives first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Run the TLS handshake, then call [`Handshake::tls_started`] and go on inside TLS. Bytes that came behind
    /// the option belong to TLS, and must not be given to [`Handshake::receive`].
    StartTls,
    /// The transmission phase begins with the next byte.
    Done(Box<Negotiated>),
    /// The client said goodbye: close the connection.
    Aborted,
}

/// The result of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The export, as it was when the client got it.
    pub export: Export,
    /// The transmission flags that the client was given.
    pub flags: TransmissionFlags,
    /// The headers of all messages from here on.
    pub style: HeaderStyle,
    /// The metadata contexts of BLOCK_STATUS; an id is a position in [`Export::contexts`].
    pub contexts: Vec<MetaContext>,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Whether the client asked for the block sizes, and so promised to keep to them.
    pub block_sizes_agreed: bool,
    /// Whether the client wants to be told of the end of the server ([`HEARS_SHUTDOWN`]).
    pub hears_shutdown: bool,
    /// Whether the client wants no zeroes behind the reply to `NBD_OPT_EXPORT_NAME`.
    pub no_zeroes: bool,
}

/// One connection before its transmission phase.
///
/// Feed [`receive`](Self::receive), and after each call send what [`poll_transmit`](Self::poll_transmit)
/// gives, then do what [`poll_event`](Self::poll_event) says. Deadlines are the caller's.
/// It stores at most [`MAX_OPTION_LEN`] bytes of input, and the replies to one option.
#[derive(Debug)]
pub struct Handshake {
    config: Config,
    state: State,
    /// The part of a message that came so far.
    input: Vec<u8>,
    output: Vec<u8>,
    event: Option<Event>,
    client_flags: ClientFlags,
    options_seen: u32,
    tls: bool,
    shutting_down: bool,
    session: Session,
}

/// What options have changed; STARTTLS forgets it all.
#[derive(Debug)]
struct Session {
    style: HeaderStyle,
    /// Canonical name of an export, and its chosen contexts.
    contexts: Option<(String, Vec<MetaContext>)>,
    hears_shutdown: bool,
}

impl Session {
    const NEW: Self = Self { style: HeaderStyle::Simple, contexts: None, hears_shutdown: false };
}

#[derive(Clone, Copy, Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    OptionData { option: Opt, len: u32 },
    Skipping { option: Opt, left: u32 },
    StartingTls,
    Finished,
}

impl Handshake {
    /// A connection that was just accepted. The greeting is ready to be sent.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        let mut output = INIT_PASSWD.to_be_bytes().to_vec();
        output.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        output.extend_from_slice(&flags.bits().to_be_bytes());
        Self {
            config,
            state: State::ClientFlags,
            input: Vec::new(),
            output,
            event: None,
            client_flags: ClientFlags::empty(),
            options_seen: 0,
            tls: false,
            shutting_down: false,
            session: Session::NEW,
        }
    }

    /// Takes bytes from the client, and returns how many. It stops early when an option was answered: send the
    /// reply, see to the event, and give it the rest. After [`Event::Done`] the rest are requests.
    ///
    /// # Errors
    ///
    /// The connection must be closed, after sending what [`poll_transmit`](Self::poll_transmit) still gives.
    pub fn receive<E: Exports + ?Sized>(
        &mut self,
        exports: &E,
        bytes: &[u8],
    ) -> Result<usize, Error> {
        let mut rest = bytes;
        let result = self.advance(exports, &mut rest);
        if result.is_err() {
            self.state = State::Finished;
        }
        result.map(|()| bytes.len() - rest.len())
    }

    /// Runs until bytes are missing, or there is something to send or an event.
    fn advance<E: Exports + ?Sized>(&mut self, exports: &E, rest: &mut &[u8]) -> Result<(), Error> {
        while self.event.is_none() && self.output.is_empty() {
            let starved = rest.is_empty();
            match self.state {
                State::ClientFlags => {
                    if self.fill(rest, CLIENT_FLAGS_LEN) {
                        self.on_client_flags()?;
                    }
                }
                State::OptionHeader => {
                    if self.fill(rest, OPTION_HEADER_LEN) {
                        self.on_option_header()?;
                    }
                }
                State::OptionData { option, len } => {
                    if self.fill(rest, usize::try_from(len).unwrap_or(usize::MAX)) {
                        self.state = State::OptionHeader;
                        let data = std::mem::take(&mut self.input);
                        self.on_option(exports, option, &data)?;
                        continue;
                    }
                }
                State::Skipping { option, left } => self.skip(rest, option, left),
                State::StartingTls | State::Finished => break,
            }
            if starved {
                break;
            }
        }
        Ok(())
    }

    /// Appends what is to be sent to the client to `out`, and says whether there was any.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> bool {
        let any = !self.output.is_empty();
        out.append(&mut self.output);
        any
    }

    /// What is to be done next, if anything but receiving.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.event.take()
    }

    /// The TLS handshake that [`Event::StartTls`] asked for has succeeded.
    ///
    /// # Panics
    ///
    /// If it was not asked for.
    pub fn tls_started(&mut self) {
        assert!(matches!(self.state, State::StartingTls), "no client asked for TLS");
        self.tls = true;
        self.session = Session::NEW;
        self.state = State::OptionHeader;
    }

    /// From now on all options but ABORT are refused with `NBD_REP_ERR_SHUTDOWN`.
    pub const fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Moves bytes until `want` are stored; says whether they are.
    fn fill(&mut self, rest: &mut &[u8], want: usize) -> bool {
        let missing = want.saturating_sub(self.input.len()).min(rest.len());
        let (head, tail) = rest.split_at(missing);
        self.input.extend_from_slice(head);
        *rest = tail;
        self.input.len() >= want
    }

    fn on_client_flags(&mut self) -> Result<(), Error> {
        let bits = Reader::new(&self.input).u32().unwrap_or(0);
        self.input.clear();
        let known = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        self.client_flags = ClientFlags::from_bits_retain(bits);
        if !known.contains(self.client_flags) {
            return Err(Error::violation(DOING, "the client set flags not offered", bits.into()));
        }
        self.state = State::OptionHeader;
        Ok(())
    }

    fn on_option_header(&mut self) -> Result<(), Error> {
        let mut r = Reader::new(&self.input);
        let (magic, option, len) =
            (r.u64().unwrap_or(0), Opt(r.u32().unwrap_or(0)), r.u32().unwrap_or(0));
        self.input.clear();
        if magic != OPTION_MAGIC {
            let kind = ErrorKind::BadMagic { expected: OPTION_MAGIC, got: magic };
            return Err(Error::new(DOING, kind));
        }
        self.options_seen += 1;
        if self.options_seen > MAX_OPTIONS {
            let (got, limit) = (self.options_seen.into(), MAX_OPTIONS.into());
            return Err(Error::too_big(DOING, "the number of options", got, limit));
        }
        // "This is the only valid option in nonfixed newstyle negotiation."
        let fixed = self.client_flags.contains(ClientFlags::FIXED_NEWSTYLE);
        if !fixed && option != Opt::EXPORT_NAME {
            let rule = "only EXPORT_NAME is valid without fixed newstyle";
            return Err(Error::violation(DOING, rule, option.0.into()));
        }
        let storable = if option == Opt::EXPORT_NAME {
            // It cannot be refused by a reply.
            u32::try_from(crate::wire::MAX_STRING_LEN).unwrap_or(MAX_OPTION_LEN)
        } else {
            MAX_OPTION_LEN
        };
        self.state = if len <= storable {
            State::OptionData { option, len }
        } else if len <= MAX_SKIPPED_LEN && option != Opt::EXPORT_NAME {
            State::Skipping { option, left: len }
        } else {
            let limit = if option == Opt::EXPORT_NAME { storable } else { MAX_SKIPPED_LEN };
            let what = "the length in bytes of an option";
            return Err(Error::too_big(DOING, what, len.into(), limit.into()));
        };
        Ok(())
    }

    fn skip(&mut self, rest: &mut &[u8], option: Opt, left: u32) {
        let step = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        *rest = &rest[step..];
        let left = left - u32::try_from(step).unwrap_or(left);
        if left > 0 {
            self.state = State::Skipping { option, left };
            return;
        }
        self.state = State::OptionHeader;
        let answer = match self.check_option(option) {
            Err(answer) => answer,
            Ok(()) if option == Opt::ABORT => return self.abort(),
            Ok(()) => (ReplyType::ERR_TOO_BIG, "the data of the option is too long"),
        };
        if option == Opt::SET_META_CONTEXT {
            self.session.contexts = None;
        }
        Replies::new(&mut self.output, option).error(answer);
    }

    fn abort(&mut self) {
        Replies::new(&mut self.output, Opt::ABORT).ack();
        self.state = State::Finished;
        self.event = Some(Event::Aborted);
    }

    /// What can be said of an option whatever its data.
    fn check_option(&self, option: Opt) -> Result<(), Answer> {
        if option == Opt::ABORT {
            return Ok(());
        }
        if self.shutting_down {
            return Err(Refusal::Shutdown.reply());
        }
        let before_tls = self.config.tls == TlsPolicy::Require && !self.tls;
        if before_tls && option != Opt::STARTTLS {
            return Err((ReplyType::ERR_TLS_REQD, "this server needs TLS"));
        }
        let known = Opt::EXPORT_NAME.0..=Opt::EXTENDED_HEADERS.0;
        // 4 was PEEK_EXPORT, withdrawn.
        if known.contains(&option.0) && option.0 != 4 {
            Ok(())
        } else {
            Err((ReplyType::ERR_UNSUP, "unknown option"))
        }
    }

    fn on_option<E: Exports + ?Sized>(
        &mut self,
        exports: &E,
        option: Opt,
        data: &[u8],
    ) -> Result<(), Error> {
        if option == Opt::EXPORT_NAME {
            return self.on_export_name(exports, data);
        }
        let answer = self.check_option(option).and_then(|()| match option {
            Opt::ABORT => {
                self.abort();
                Ok(())
            }
            Opt::LIST => self.on_list(exports, data),
            Opt::STARTTLS => self.on_starttls(data),
            Opt::INFO | Opt::GO => self.on_info(exports, option, data),
            Opt::STRUCTURED_REPLY | Opt::EXTENDED_HEADERS => self.on_style(option, data),
            Opt::LIST_META_CONTEXT => self.on_list_contexts(exports, data),
            _ => self.on_set_contexts(exports, data),
        });
        if let Err(answer) = answer {
            Replies::new(&mut self.output, option).error(answer);
        }
        Ok(())
    }

    fn on_list<E: Exports + ?Sized>(&mut self, exports: &E, data: &[u8]) -> Result<(), Answer> {
        if !data.is_empty() {
            return Err(NO_DATA);
        }
        let mut replies = Replies::new(&mut self.output, Opt::LIST);
        exports.list(self.tls, &mut |name, description| replies.server(name, description));
        replies.ack();
        Ok(())
    }

    fn on_starttls(&mut self, data: &[u8]) -> Result<(), Answer> {
        if !data.is_empty() {
            return Err(NO_DATA);
        }
        if self.config.tls == TlsPolicy::Off {
            return Err((ReplyType::ERR_POLICY, "this server does not speak TLS"));
        }
        if self.tls {
            return Err((ReplyType::ERR_INVALID, "TLS is spoken already"));
        }
        Replies::new(&mut self.output, Opt::STARTTLS).ack();
        self.state = State::StartingTls;
        self.event = Some(Event::StartTls);
        Ok(())
    }

    fn on_style(&mut self, option: Opt, data: &[u8]) -> Result<(), Answer> {
        if !data.is_empty() {
            return Err(NO_DATA);
        }
        let (style, offered) = match option {
            Opt::EXTENDED_HEADERS => {
                (HeaderStyle::Extended, self.config.best_style == HeaderStyle::Extended)
            }
            _ => (HeaderStyle::Structured, self.config.best_style.has_chunks()),
        };
        if !offered {
            return Err((ReplyType::ERR_UNSUP, "this server does not have these headers"));
        }
        if self.session.style == HeaderStyle::Extended && style != HeaderStyle::Extended {
            let message = "extended headers are agreed on already";
            return Err((ReplyType::ERR_EXT_HEADER_REQD, message));
        }
        self.session.style = style;
        Replies::new(&mut self.output, option).ack();
        Ok(())
    }

    fn on_list_contexts<E: Exports + ?Sized>(
        &mut self,
        exports: &E,
        data: &[u8],
    ) -> Result<(), Answer> {
        let request = ContextRequest::parse(data)?;
        let export = self.find(exports, Opt::LIST_META_CONTEXT, request.export)?;
        let mut replies = Replies::new(&mut self.output, Opt::LIST_META_CONTEXT);
        for at in request.listed(&export.contexts) {
            // "The metadata context ID in these replies is reserved and SHOULD be set to zero."
            replies.meta_context(0, &export.contexts[at]);
        }
        replies.ack();
        Ok(())
    }

    fn on_set_contexts<E: Exports + ?Sized>(
        &mut self,
        exports: &E,
        data: &[u8],
    ) -> Result<(), Answer> {
        // It "replaces all previously-set metadata contexts (including when this command fails)".
        self.session.contexts = None;
        self.session.hears_shutdown = false;
        let request = ContextRequest::parse(data)?;
        if !self.session.style.has_chunks() {
            let message = "metadata contexts need structured replies or extended headers first";
            return Err((ReplyType::ERR_INVALID, message));
        }
        let Export { info, mut contexts, .. } =
            self.find(exports, Opt::SET_META_CONTEXT, request.export)?;
        let mut replies = Replies::new(&mut self.output, Opt::SET_META_CONTEXT);
        let mut chosen = Vec::new();
        for at in request.selected(&contexts) {
            let name = std::mem::take(&mut contexts[at]);
            let id = u32::try_from(at).unwrap_or(u32::MAX);
            replies.meta_context(id, &name);
            chosen.push(MetaContext { id, name });
        }
        replies.ack();
        self.session.contexts = Some((info.name, chosen));
        // It selects nothing.
        self.session.hears_shutdown = request.queries.contains(&HEARS_SHUTDOWN);
        Ok(())
    }

    fn on_info<E: Exports + ?Sized>(
        &mut self,
        exports: &E,
        option: Opt,
        data: &[u8],
    ) -> Result<(), Answer> {
        let wanted = InfoRequest::parse(data)?;
        let export = self.find(exports, option, wanted.name)?;
        let negotiated = self.negotiated(export, wanted.wants_block_size);
        let export = &negotiated.export;
        let mut replies = Replies::new(&mut self.output, option);
        if export.block_sizes_required && !wanted.wants_block_size {
            replies.info_block_size(export.block_sizes());
            let message = "this export needs clients that ask for its block sizes";
            return Err((ReplyType::ERR_BLOCK_SIZE_REQD, message));
        }
        replies.info_export(export.info.size, negotiated.flags);
        if wanted.wants_name {
            replies.info_text(InfoType::NAME, &export.info.name);
        }
        if wanted.wants_description && !export.info.description.is_empty() {
            replies.info_text(InfoType::DESCRIPTION, &export.info.description);
        }
        // Also unasked: what is enforced MUST be told ("Size constraints").
        replies.info_block_size(export.block_sizes());
        replies.ack();
        if option == Opt::GO {
            self.finish(negotiated);
        }
        Ok(())
    }

    fn on_export_name<E: Exports + ?Sized>(
        &mut self,
        exports: &E,
        data: &[u8],
    ) -> Result<(), Error> {
        let close = |(_, reason)| Error::new(DOING, ErrorKind::Policy(reason));
        self.check_option(Opt::EXPORT_NAME).map_err(close)?;
        if self.session.style == HeaderStyle::Extended {
            let rule = "EXPORT_NAME is forbidden after extended headers";
            return Err(Error::violation(DOING, rule, Opt::EXPORT_NAME.0.into()));
        }
        let export = export_name(data)
            .and_then(|name| self.find(exports, Opt::EXPORT_NAME, name))
            .map_err(close)?;
        if export.block_sizes_required {
            return Err(close((ReplyType::ERR_BLOCK_SIZE_REQD, "the export needs NBD_OPT_GO")));
        }
        let negotiated = self.negotiated(export, false);
        self.output.extend_from_slice(&negotiated.export.info.size.to_be_bytes());
        self.output.extend_from_slice(&negotiated.flags.bits().to_be_bytes());
        if !negotiated.no_zeroes {
            self.output.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
        }
        self.finish(negotiated);
        Ok(())
    }

    /// The export that an option names. Before TLS, a name that is hidden until then looks like one that there is not:
    /// both need TLS where that may be said ("SELECTIVETLS mode": in reply to INFO, GO and EXPORT_NAME), and are
    /// unknown elsewhere.
    fn find<E: Exports + ?Sized>(
        &self,
        exports: &E,
        option: Opt,
        name: &str,
    ) -> Result<Export, Answer> {
        let found = match exports.find(name) {
            Ok(export) if export.tls_only && !self.tls => Err(Refusal::TlsRequired),
            other => other,
        };
        // "The server MUST NOT respond to any option request with NBD_REP_ERR_TLS_REQD" without TLS to offer, nor once it is
        // spoken.
        let before_tls = self.config.tls != TlsPolicy::Off && !self.tls;
        let may_say = matches!(option, Opt::INFO | Opt::GO | Opt::EXPORT_NAME);
        found.map_err(|refusal| {
            let hidden = match refusal {
                Refusal::TlsRequired => true,
                Refusal::Unknown => before_tls && hides_exports(exports),
                Refusal::Policy | Refusal::Shutdown => false,
            };
            match (hidden, before_tls) {
                (false, _) => refusal,
                (true, false) => Refusal::Policy,
                (true, true) if may_say => Refusal::TlsRequired,
                (true, true) => Refusal::Unknown,
            }
            .reply()
        })
    }

    fn negotiated(&self, export: Export, block_sizes_agreed: bool) -> Negotiated {
        let style = self.session.style;
        let contexts = match &self.session.contexts {
            Some((name, contexts)) if *name == export.info.name => contexts.clone(),
            _ => Vec::new(),
        };
        let mut flags = export.info.flags | TransmissionFlags::HAS_FLAGS;
        if !style.has_chunks() {
            flags -= TransmissionFlags::SEND_DF;
        }
        if style != HeaderStyle::Extended || contexts.is_empty() {
            flags -= TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        }
        if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
            flags -= TransmissionFlags::SEND_FAST_ZERO;
        }
        let no_zeroes = self.client_flags.contains(ClientFlags::NO_ZEROES);
        let (tls, hears_shutdown) = (self.tls, self.session.hears_shutdown);
        Negotiated {
            export,
            flags,
            style,
            contexts,
            tls,
            block_sizes_agreed,
            hears_shutdown,
            no_zeroes,
        }
    }

    fn finish(&mut self, negotiated: Negotiated) {
        self.state = State::Finished;
        self.event = Some(Event::Done(Box::new(negotiated)));
    }
}

/// Whether there are exports that are listed only once TLS is spoken.
fn hides_exports<E: Exports + ?Sized>(exports: &E) -> bool {
    let count = |tls| {
        let mut count = 0;
        exports.list(tls, &mut |_, _| count += 1);
        count
    };
    count(true) != count(false)
}
