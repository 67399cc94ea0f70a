// Having an answer written: what is asked for, and the tokens into their node as they come.

import * as api from "./api.js";
import { token } from "./pieces.js";

/** What a model is asked to go on with after a node: the messages of a chat, ids that it wrote itself, or a text. */
export function promptAfter(conversation, index) {
  if (conversation.mode === "chat") return { messages: conversation.messagesTo(index) };
  return { prompt: conversation.idsTo(index) ?? conversation.textTo(index) };
}

/** A node for an answer that is to be written; `kept` are tokens with which it begins. */
export const answerNode = (model, sampling, { prompt = null, kept = [] } = {}) => ({
  role: "model", model, sampling, prompt, tokens: kept, text: kept.map((each) => each.text).join(""), finish: null, speed: null,
});

/**
 * Write a node's answer, from `asked` on, until it ends or is stopped; what came stays in any case.
 * `grown(index)` is called after each piece.
 *
 * A prompt that leaves less room in the model's context than the settings allow gets an answer that is as long as there
 * is room; `contextLength(model)` says what that context is.
 */
export async function writeAnswer(conversation, index, asked, { contextLength, grown }) {
  const node = conversation.nodes[index];
  const stopper = new AbortController();
  conversation.stopper = stopper;
  node.finish = null;
  node.error = null;
  node.speed = null;
  let began = null;
  let count = 0;
  try {
    const { max_tokens: most, ...sampling } = node.sampling;
    const { count: length, context } = Array.isArray(asked.prompt)
      ? { count: asked.prompt.length, context: await contextLength(node.model) }
      : await api.measure(node.model, asked, stopper.signal);
    const room = context - length + 1; // the last token need not be read
    if (room < 1) throw new api.ServerError(tooLong(conversation, length, context));
    const body = { model: node.model, ...asked, ...sampling, max_tokens: Math.min(most, room) };
    for await (const piece of api.write(body, stopper.signal)) {
      if (piece.prompt) {
        node.prompt ??= piece.prompt;
        continue;
      }
      began ??= performance.now();
      if (piece.id !== null) {
        node.tokens.push(token({ ...piece, end: piece.finish === "stop" }));
        count += 1;
      } else if (piece.text && node.tokens.length > 0) node.tokens.at(-1).text += piece.text;
      node.text += piece.text;
      if (piece.finish) node.finish = piece.finish === "length" && room < most ? "context" : piece.finish;
      const seconds = (performance.now() - began) / 1000;
      node.speed = count > 1 && seconds > 0 ? (count - 1) / seconds : null; // the first token waits for the prompt
      grown(index);
    }
    node.finish ??= "stop";
  } catch (error) {
    node.finish = api.isStop(error) ? "stopped" : "failed";
    if (!api.isStop(error)) {
      node.error = error.message;
      node.retry = error.seconds ?? 0;
    }
  }
  conversation.stopper = null;
  conversation.changed = Date.now();
}

const tooLong = ({ mode }, count, context) =>
  mode === "chat"
    ? `The conversation has ${count} tokens, and the model can read ${context}. Begin a new one, or edit an earlier message.`
    : `The text has ${count} tokens, and the model can read ${context}. Shorten it, or begin a new one.`;
