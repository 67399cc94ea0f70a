// Asking the server, and its errors in words.

import { namedBytes } from "./pieces.js";

/** What went wrong, in a sentence for people. */
export class ServerError extends Error {
  constructor(message, { status = 0, seconds = null } = {}) {
    super(message);
    this.status = status;
    this.seconds = seconds; // to wait before asking again, where the server says so
  }
}

/** Whether an error is only that somebody pressed Stop. */
export const isStop = (error) => error instanceof DOMException && error.name === "AbortError";

async function ask(path, body, signal) {
  let response;
  try {
    const post = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    response = await fetch(path, { signal, ...post });
  } catch (error) {
    if (isStop(error)) throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = `The server answered with the status ${response.status}.`;
  try {
    message = sentence((await response.json()).error.message);
  } catch {
    // It was not in the API's form, as from a proxy in between.
  }
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const seconds = Number.isFinite(wait) ? wait : null;
  if (seconds !== null) {
    const then = seconds === 1 ? "a second" : `${seconds} seconds`;
    message = `${message.replace(/ (Try|Ask) again[^.]*\.$/, "")} Try again in ${then}.`;
  }
  return new ServerError(message, { status: response.status, seconds });
}

function sentence(text) {
  const trimmed = String(text).trim();
  return /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}

async function json(path, body, signal) {
  const response = await ask(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    if (isStop(error)) throw error;
    throw new ServerError("The server's answer could not be read.");
  }
}

export const models = async () => (await json("/v1/models")).data;
export const model = (name) => json(`/v1/models/${encodeURIComponent(name)}`);
export const styles = () => json("/v1/styles");

const measured = new Map();
const MOST_MEASURED = 16;

/** How many tokens a prompt has, of `{prompt: text}` or `{messages}`, and how many the model can read; remembered. */
export async function measure(name, asked, signal) {
  const body = { model: name, ...asked };
  const key = JSON.stringify(body);
  if (!measured.has(key)) {
    const { count, max_model_len: context } = await json("/v1/tokenize", body, signal);
    if (measured.size === MOST_MEASURED) measured.delete(measured.keys().next().value);
    measured.set(key, { count, context });
  }
  return measured.get(key);
}

/** The distribution over the next token: see POST /v1/next. */
export const next = (asked, signal) => json("/v1/next", asked, signal);

/**
 * The pieces of an answer as they come: `{prompt}` once, the ids that were read; then `{id, text, logprob, bytes, finish}`,
 * one for each token. `asked` holds the messages of a chat or the prompt of a text, and how it is drawn.
 */
export async function* write(asked, signal) {
  const chat = "messages" in asked;
  const path = chat ? "/v1/chat/completions" : "/v1/completions";
  const body = { ...asked, stream: true, return_token_ids: true, logprobs: chat ? true : 0 };
  for await (const event of events(await ask(path, body, signal))) {
    const choice = event.choices?.[0];
    if (!choice) continue;
    if (choice.prompt_token_ids) yield { prompt: choice.prompt_token_ids };
    const text = (chat ? choice.delta?.content : choice.text) ?? "";
    const finish = choice.finish_reason ?? null;
    const [id] = choice.token_ids ?? [];
    if (id === undefined && !text && !finish) continue; // the beginning
    const told = chat ? choice.logprobs?.content?.[0] : columns(choice.logprobs);
    yield { id: id ?? null, text, finish, logprob: told?.logprob ?? null, bytes: told?.bytes ?? null };
  }
}

/** What completions say of a token, in lists beside each other. */
const columns = (told) => told && { logprob: told.token_logprobs[0] ?? null, bytes: namedBytes(told.tokens[0]) };

/** The events of a stream, read one by one, until its [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) throw new ServerError("The server ended the answer before it was finished.");
      rest += value;
      const whole = rest.split("\n\n");
      rest = whole.pop();
      for (const event of whole) {
        if (!event.startsWith("data:")) continue;
        const data = event.slice("data:".length).trim();
        if (data === "[DONE]") return;
        const told = JSON.parse(data);
        if (told.error) throw new ServerError(sentence(told.error.message));
        yield told;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops reading stops the writing
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (isStop(error)) throw error;
    throw new ServerError("The connection to the server was lost while it was writing.");
  }
}
