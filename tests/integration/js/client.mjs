// Clients of the official JavaScript SDK, driven over standard input and output by sdks.py. One process holds many.
//
// In, a JSON object a line:  {"id", "client", "op": "open" | "subscribe" | "publish" | "history" | "close", ...}
// Out, the same:             {"id", "result"} or {"id", "error": {"code", "message"}}, and for what happens by itself
//                            {"client", "event": "connecting" | "connected" | "publication" | ..., ...}

import { createInterface } from "node:readline";
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";

const clients = new Map();

const write = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

function open({ client: name, url, options }) {
  const client = new Centrifuge(url, { websocket: WebSocket, ...options });
  clients.set(name, client);
  const tell = (event, details) => write({ client: name, event, ...details });
  client.on("connecting", ({ code, reason }) => tell("connecting", { code, reason }));
  client.on("connected", ({ client: id }) => tell("connected", { id }));
  client.on("disconnected", ({ code, reason }) => tell("disconnected", { code, reason }));
  client.connect();
  return {};
}

function subscribe({ client: name, channel }) {
  const subscription = clients.get(name).newSubscription(channel);
  const tell = (event, details) => write({ client: name, event, channel, ...details });
  subscription.on("subscribed", ({ wasRecovering, recovered }) => tell("subscribed", { wasRecovering, recovered }));
  subscription.on("unsubscribed", ({ code, reason }) => tell("unsubscribed", { code, reason }));
  subscription.on("publication", ({ data, offset, info }) => tell("publication", received({ data, offset, info })));
  subscription.subscribe();
  return {};
}

const received = ({ data, offset, info }) => ({ data, offset: offset ?? 0, connection: info?.client ?? "" });

async function history({ client: name, channel, limit, since, reverse }) {
  const options = { limit, reverse, ...(since && { since }) };
  const { publications, epoch, offset } = await clients.get(name).history(channel, options);
  return { publications: publications.map(received), epoch, offset };
}

function close({ client: name }) {
  clients.get(name).disconnect();
  return {};
}

const operations = {
  open,
  subscribe,
  publish: ({ client: name, channel, data }) => clients.get(name).publish(channel, data),
  history,
  close,
};

async function carryOut({ id, op, ...parameters }) {
  try {
    write({ id, result: (await operations[op](parameters)) ?? {} });
  } catch (error) {
    write({ id, error: { code: error.code ?? 0, message: error.message ?? String(error) } });
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  carryOut(JSON.parse(line)); // not awaited: commands of one client follow each other without waiting for replies
}
process.exit(0);
