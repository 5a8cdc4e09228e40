// Chat over the Centrifuge client protocol with the browser's own WebSocket: no library, no build step.
//
//   Connection   the protocol over one socket: commands and replies, pushes, pings
//   Chat         the state: what was said, where we stand in the channel, when to come back; knows no DOM
//   the page     the DOM: shows a Chat and hands it what is typed

const ANSWER_MS = 15_000; // the server itself gives a publication 10 s
const PONG_SLACK_MS = 10_000; // how late a ping may be before the connection counts as lost
const BACKOFF_MS = 500; // the first pause before coming back is up to this, the next up to twice this …
const BACKOFF_MAX_MS = 20_000;
const STEADY_MS = 5_000; // a connection that lasted this long makes the next pause short again
const HISTORY_LIMIT = 50;
const KEPT = 500; // messages shown; the oldest go

const LOST = { message: "the connection was lost", temporary: true };
const UNANSWERED = { message: `no answer within ${ANSWER_MS / 1000} s`, temporary: true };

const isFinal = (code) => (code >= 3500 && code < 4000) || (code >= 4500 && code < 5000);

/** One WebSocket. It ends once and is not used again. Replies and pushes are handed on at once, in their order. */
class Connection {
  #socket;
  #onPush;
  #onEnd;
  #calls = new Map(); // id → settle(error, result)
  #lastId = 0;
  #silenceMs = ANSWER_MS;
  #silence;
  #hasEnded = false;

  constructor(url, { onOpen, onPush, onEnd }) {
    this.#onPush = onPush;
    this.#onEnd = onEnd;
    this.#socket = new WebSocket(url);
    this.#socket.onopen = onOpen;
    this.#socket.onmessage = ({ data }) => this.#receive(data);
    this.#socket.onclose = ({ code, reason }) => this.end(code, reason);
    this.#expectSound();
  }

  /** Send a command. `answer(error, result)` is called once: with the reply, or with LOST or UNANSWERED. */
  call(method, params, answer) {
    const id = ++this.#lastId;
    const settle = (error, result) => {
      clearTimeout(timer);
      if (this.#calls.delete(id)) answer(error, result);
    };
    const timer = setTimeout(() => settle(UNANSWERED), ANSWER_MS);
    this.#calls.set(id, settle);
    if (this.#hasEnded) settle(LOST);
    else this.#socket.send(JSON.stringify({ id, [method]: params }));
  }

  /** From now on the server is heard at least every `seconds`. */
  expectPings(seconds) {
    this.#silenceMs = seconds * 1000 + PONG_SLACK_MS;
    this.#expectSound();
  }

  end(code, reason) {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    clearTimeout(this.#silence);
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null; // a dead socket may take minutes to close
    socket.close();
    for (const settle of [...this.#calls.values()]) settle(LOST);
    this.#onEnd(code, reason);
  }

  #receive(frame) {
    this.#expectSound();
    for (const line of frame.split("\n")) {
      if (!line || this.#hasEnded) continue;
      const { id, error, push, ...result } = JSON.parse(line);
      if (push) this.#onPush(push);
      else if (id) this.#calls.get(id)?.(error, Object.values(result)[0] ?? {});
      else this.#socket.send("{}"); // the empty object: a ping, and the pong
    }
  }

  #expectSound() {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.end(1006, "the server is silent"), this.#silenceMs);
  }
}

/**
 * One channel: its messages, ours that are on their way, and the connection that is kept up for it.
 *
 * `phase` is connecting, joining, connected, waiting (to come back) or stopped (for good); `reason` says why.
 */
class Chat {
  phase = "connecting";
  reason = "";
  client = "";
  node = "";
  messages = []; // in the channel's order
  outgoing = []; // ours that have not come back to us yet
  #url;
  #channel;
  #onChange;
  #connection;
  #clients = new Set(); // ids of all our connections
  #position = null; // of the channel, as far as we have heard it
  #generation = 0; // grows when the channel begins anew: its offsets start again
  #lacksHistory = true;
  #attempts = 0;
  #joinedAt = Infinity;
  #timer;

  constructor(url, channel, onChange) {
    this.#url = url;
    this.#channel = channel;
    this.#onChange = onChange;
  }

  connect() {
    clearTimeout(this.#timer);
    this.#enter("connecting");
    this.#connection = new Connection(this.#url, {
      onOpen: () => this.#greet(),
      onPush: (push) => this.#hear(push),
      onEnd: (code, reason) => this.#lose(code, reason),
    });
  }

  /** Say something. Returns whether it was taken; what became of it is in the message's `state`. */
  send(text, name) {
    if (this.phase !== "connected") return false;
    const message = { text, name, isOwn: true, time: Date.now() };
    this.outgoing.push(message);
    this.publish(message);
    return true;
  }

  /** Publish one of `outgoing`, for the first time or because the user says so: it is never done by itself. */
  publish(message) {
    if (this.phase !== "connected") return this.#settle(message, "failed", "Not connected.");
    message.client = this.client;
    this.#settle(message, "pending");
    const { text, name } = message;
    this.#connection.call("publish", { channel: this.#channel, data: { text, name } }, (error) => {
      if (message.state !== "pending") return; // it has come back to us before its reply
      if (!error) this.#settle(message, "sent");
      else if (error === LOST) this.#settle(message, "unknown", "The connection was lost: it may have arrived, or not.");
      else if (error === UNANSWERED) this.#settle(message, "failed", "No answer in time. It may still arrive.");
      else this.#settle(message, "failed", `Not sent: ${error.message} (${error.code}).`);
    });
  }

  discard(message) {
    this.outgoing = this.outgoing.filter((one) => one !== message);
    this.#onChange();
  }

  #greet() {
    this.#call("connect", { name: "page" }, ({ client, node = "", ping = 0 }) => {
      this.client = client;
      this.node = node;
      this.#clients.add(client);
      if (ping) this.#connection.expectPings(ping);
      this.#join();
    });
  }

  #join() {
    this.#enter("joining");
    const since = this.#position && { recover: true, ...this.#position };
    this.#call("subscribe", { channel: this.#channel, ...since }, (result) => {
      const { epoch = "", offset = 0, publications = [], recovered = false } = result;
      if (this.#position && !recovered) {
        this.#insert({ isNotice: true, text: "Messages may be missing here", rank: this.#position.offset });
        if (epoch !== this.#position.epoch) this.#generation++;
        this.#lacksHistory = true;
      }
      this.#position = { epoch, offset };
      publications.forEach((publication) => this.#advance(publication));
      if (this.#lacksHistory) this.#readHistory();
      this.#joinedAt = Date.now();
      this.#enter("connected");
    });
  }

  #readHistory() {
    const request = { channel: this.#channel, limit: HISTORY_LIMIT, reverse: true };
    this.#connection.call("history", request, (error, { publications = [] } = {}) => {
      if (error?.temporary) return this.#connection.end(1006, error.message);
      this.#lacksHistory = false; // also when it is refused: then the channel has none for us
      publications.forEach((publication) => this.#take(publication));
      this.#onChange();
    });
  }

  /** Call what we cannot go on without: a temporary failure begins anew with a pause, another ends it all. */
  #call(method, params, answer) {
    this.#connection.call(method, params, (error, result) => {
      if (!error) answer(result);
      else if (error.temporary) this.#connection.end(1006, error.message);
      else this.#stop(`${method} was refused: ${error.message} (${error.code})`);
    });
  }

  #hear({ channel, pub, unsubscribe }) {
    if (channel !== this.#channel || !this.#position) return;
    if (pub) this.#advance(pub);
    else if (unsubscribe?.code >= 2500) this.#connection.end(1006, unsubscribe.reason);
    else if (unsubscribe) this.#stop(`the server ended the subscription: ${unsubscribe.reason} (${unsubscribe.code})`);
    this.#onChange();
  }

  #lose(code, reason) {
    if (this.phase === "stopped") return;
    if (isFinal(code)) return this.#stop(`the server closed the connection: ${reason || "no reason given"} (${code})`);
    if (Date.now() - this.#joinedAt > STEADY_MS) this.#attempts = 0;
    this.#joinedAt = Infinity;
    const pause = Math.random() * Math.min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ** this.#attempts++);
    this.#timer = setTimeout(() => this.connect(), pause);
    this.#enter("waiting", reason);
  }

  #stop(reason) {
    this.#enter("stopped", reason);
    this.#connection.end();
  }

  /** Take a publication that comes after all we have heard. */
  #advance(publication) {
    this.#take(publication);
    if (publication.offset) this.#position.offset = publication.offset;
  }

  /** Put a publication in its place, unless it is there. */
  #take({ data, info, offset, time = Date.now() }) {
    const isKnown = ({ generation, offset: known }) => generation === this.#generation && known === offset;
    if (offset && this.messages.some(isKnown)) return;
    const text = typeof data?.text === "string" ? data.text : JSON.stringify(data);
    const name = typeof data?.name === "string" ? data.name : info?.user;
    const isSame = (ours) => ours.client === info?.client && ours.text === text && ours.name === name;
    const message = this.outgoing.find((ours) => isSame(ours) && ours.state !== "failed") ??
      this.outgoing.find(isSame) ?? { text, name, isOwn: this.#clients.has(info?.client) };
    this.outgoing = this.outgoing.filter((ours) => ours !== message);
    // Without history there are no offsets: then the order of arrival is all there is.
    const rank = offset || (this.messages.at(-1)?.rank ?? 0);
    this.#insert(Object.assign(message, { offset, rank, time, state: "received", reason: "" }));
  }

  #insert(message) {
    message.generation = this.#generation;
    let at = this.messages.length;
    const isAfter = ({ generation, rank }) => generation === message.generation && rank > message.rank;
    while (at > 0 && isAfter(this.messages[at - 1])) at--;
    this.messages.splice(at, 0, message);
    this.messages.splice(0, this.messages.length - KEPT);
  }

  #settle(message, state, reason = "") {
    Object.assign(message, { state, reason });
    this.#onChange();
  }

  #enter(phase, reason = "") {
    this.phase = phase;
    this.reason = reason;
    this.#onChange();
  }
}

// The page

const find = (id) => document.getElementById(id);
const [state, client, log, empty, list, error, form, input, name, send] =
  ["state", "client", "log", "empty", "messages", "error", "form", "input", "name", "send"].map(find);
const items = new WeakMap(); // message → its list item, and what of it is shown there
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

const channel = new URLSearchParams(location.search).get("channel") || "chat";
const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/connection/websocket`;
const chat = new Chat(url, channel, changed);
let isChanged = false;

/** Show the changes of this turn at once. Not on the next animation frame: a tab in the background has none. */
function changed() {
  if (isChanged) return;
  isChanged = true;
  queueMicrotask(() => {
    isChanged = false;
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    showState();
    showMessages();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  });
}

function showState() {
  const { phase, reason } = chat;
  const words = {
    connecting: "Connecting…",
    joining: "Joining the channel…",
    connected: "Connected",
    waiting: `No connection${reason ? ` (${reason})` : ""}, trying again…`,
    stopped: "Disconnected",
  };
  state.textContent = words[phase];
  state.dataset.state = phase;
  client.textContent = phase === "connected" ? `client ${chat.client.slice(0, 8)} · node ${chat.node.slice(0, 8)}` : "";
  log.setAttribute("aria-busy", String(phase !== "connected"));
  send.disabled = phase !== "connected";
  if (phase === "stopped") error.textContent = `Not coming back: ${reason}. Reload the page to try again.`;
}

function showMessages() {
  const shown = [...chat.messages, ...chat.outgoing];
  const wanted = new Set(shown.map(itemOf));
  empty.hidden = shown.length > 0;
  for (const item of [...list.children]) if (!wanted.has(item)) item.remove();
  let next = list.firstElementChild;
  for (const item of wanted) {
    if (item === next) next = next.nextElementSibling;
    else list.insertBefore(item, next); // moves nothing that stands right: it would be read out again
  }
}

function itemOf(message) {
  const made = items.get(message);
  const version = `${message.state} ${message.reason}`;
  if (made?.version === version) return made.item;
  const item = made?.item ?? element("li", message.isNotice ? "notice" : message.isOwn ? "message own" : "message");
  items.set(message, { item, version });
  if (message.isNotice) {
    item.textContent = message.text;
    return item;
  }
  Object.assign(item.dataset, { testid: "message", state: message.state });
  if (message.offset) item.dataset.offset = message.offset;
  const time = element("time", "", clock.format(message.time));
  time.dateTime = new Date(message.time).toISOString();
  const about = element("p", "about", element("bdi", "author", message.name || "anonymous"), time);
  item.replaceChildren(about, element("p", "said", message.text), ...fateOf(message));
  return item;
}

/** What is to be said of a message that is not in the channel yet. */
function fateOf(message) {
  if (message.state === "pending") return [element("p", "fate", "Sending…")];
  if (message.state === "sent") return [element("p", "fate", "Sent")];
  if (!message.reason) return [];
  const button = (label, testid, act) => {
    const made = element("button", "", label);
    made.type = "button";
    made.dataset.testid = testid;
    made.onclick = () => {
      act();
      input.focus(); // the button goes
    };
    return made;
  };
  const again = button("Send again", "retry", () => chat.publish(message));
  const discard = button("Discard", "discard", () => chat.discard(message));
  return [element("div", "fate", element("p", "", message.reason), again, discard)];
}

/** Make an element. What it holds is text or elements, never HTML. */
function element(tag, className, ...content) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...content);
  return made;
}

form.onsubmit = (event) => {
  event.preventDefault();
  const text = input.value.toWellFormed(); // half an emoji is no JSON for the server
  error.textContent = "";
  if (!text.trim()) return;
  if (text.length > input.maxLength) error.textContent = `At most ${input.maxLength} characters, please.`;
  else if (chat.send(text, name.value.trim().slice(0, name.maxLength).toWellFormed())) {
    input.value = "";
    log.scrollTop = log.scrollHeight;
  }
};

input.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
};

addEventListener("online", () => chat.phase === "waiting" && chat.connect());

name.value = `guest-${Math.floor(Math.random() * 9000) + 1000}`;
try {
  name.value = sessionStorage.getItem("name") ?? name.value; // each tab its own, kept over a reload
  name.onchange = () => sessionStorage.setItem("name", name.value);
} catch {
  // the browser is told to store nothing
}
find("channel").textContent = channel;
document.title = `#${channel} · chat`;
chat.connect();
