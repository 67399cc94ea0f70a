// Tokens as text. A token is bytes, and may be only a part of a character: what it spells depends on those before it.

const encoder = new TextEncoder();

/** A token as an answer keeps it; its bytes only where its text does not say them. */
export function token({ id, text, logprob, bytes, end = false }) {
  const kept = { id, text, logprob: logprob === null ? null : Math.min(0, Number(logprob.toFixed(5))) };
  if (bytes && !same(encoder.encode(text), bytes)) kept.bytes = bytes;
  if (end) kept.end = true;
  return kept;
}

const same = (one, other) => one.length === other.length && one.every((byte, place) => byte === other[place]);

/** The text that one more token adds after others: the characters that are whole by now. */
export function added(before, chosen) {
  if (chosen.end || chosen.special) return "";
  let start = before.length; // no character begins before it and is unfinished
  while (start > 0 && before[start - 1].bytes) start -= 1;
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  for (const each of before.slice(start)) decoder.decode(Uint8Array.from(each.bytes), { stream: true });
  return decoder.decode(Uint8Array.from(chosen.bytes), { stream: true });
}

/** The bytes of a token as completions name it where it is no whole text: `bytes:\xe2\x80`; null of any other. */
export function namedBytes(name) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(name ?? "")) return null;
  return name.slice("bytes:\\x".length).split("\\x").map((byte) => Number.parseInt(byte, 16));
}

const SPACES = new Map([[" ", "␣"], ["\n", "↵"], ["\r", "␍"], ["\t", "⇥"], ["\u00a0", "⍽"]]);

/**
 * The parts of a token's name, to be shown apart: [text, kind], where the kind is "plain", "space", "bytes" or "special".
 * Characters that cannot be seen get a sign; bytes that are no text are written in hexadecimal.
 */
export function nameParts({ text, bytes = null, special = false, end = false }) {
  if (special || end) return [[text || "end of text", "special"]];
  if (bytes && !same(encoder.encode(text), bytes)) {
    return [[bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" "), "bytes"]];
  }
  const parts = [];
  for (const character of text) {
    const sign = SPACES.get(character) ?? (/[\p{C}\p{Z}]/u.test(character) ? code(character) : null);
    const [shown, kind] = sign ? [sign, "space"] : [character, "plain"];
    if (parts.at(-1)?.[1] === kind && kind === "plain") parts.at(-1)[0] += shown;
    else parts.push([shown, kind]);
  }
  return parts.length > 0 ? parts : [["(no text)", "special"]];
}

const code = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** The name in one string, for those who listen. */
export const spokenName = (piece) => nameParts(piece).map(([part]) => part).join("").replaceAll("␣", " ").replaceAll("↵", "new line");
