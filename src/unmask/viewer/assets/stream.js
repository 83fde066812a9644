/* Answers of the server while they arrive: the request, its events, and the trace that they add up to. */
"use strict";

const CUT_OFF = "The connection ended before the answer was finished.";
/* As wide as most tokens: of a masked one that is still to come nothing is known. */
const UNKNOWN_PIECE = "   ";

/* The server refused or failed; `status` is that of HTTP, 0 for an error within the stream. */
class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function refusal(response) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    // not an error as the API makes them: a proxy's page, say
  }
  const wait = response.headers.get("Retry-After");
  const text = said || `The server answered with status ${response.status}${response.statusText ? ` (${response.statusText})` : ""}.`;
  return new ServerError(wait && response.status === 429 ? `${text} Try again in ${wait} s.` : text, response.status);
}

function readChunk(text) {
  try {
    return parsePythonJson(text);
  } catch {
    throw new ServerError("The server sent something that cannot be read.");
  }
}

/* The JSON objects of an event stream, until [DONE]. */
async function* readEvents(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  for (let rest = "", isOver = false; !isOver;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(CUT_OFF);
    }
    isOver = part.done;
    const events = (rest + decoder.decode(part.value, { stream: !isOver })).split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) {
      const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const text = lines.map((line) => line.slice(5).trim()).join("\n");
      if (text === "[DONE]") return;
      if (text) yield readChunk(text);
    }
  }
  throw new ServerError(CUT_OFF);
}

/* Send one request and feed what comes back to `answer` (a LiveAnswer); onChange(): there is more to see. Returns when the
   answer is complete. Throws a ServerError, or the AbortError of `signal`. */
async function streamAnswer(body, key, signal, answer, onChange) {
  const headers = { "Content-Type": "application/json" };
  if (/[^\x20-\x7e]/.test(key)) throw new ServerError("The API key has characters that cannot be sent.", 401);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached.");
  }
  if (!response.ok) throw await refusal(response);
  for await (const chunk of readEvents(response.body)) {
    if (chunk.error) throw new ServerError(chunk.error.message);
    for (const choice of chunk.choices) {
      answer.text += (choice.delta && choice.delta.content) || "";
      if (choice.unmask) answer.take(choice.unmask);
    }
    onChange();
  }
  if (!answer.record) throw new ServerError("The server sent no trace of the answer.");
}

/* One answer: its panel data (`data`, see panelData in records.js) grow with the events; at the end `record` is a line for a
   traces.jsonl. */
class LiveAnswer {
  constructor(question, id, member) {
    this.question = question;
    this.id = id;
    this.member = member;
    this.text = "";
    this.record = null;
    this.begin({ prompt_token_ids: [], prompt_tokens: [], block_size: 1, num_canvas_tokens: 0, is_block_causal: true });
    this.data.ending = "waiting for the model";
  }

  take(unmask) {
    if (unmask.start) this.begin(unmask.start);
    if (unmask.step !== undefined) this.unmask(unmask.step, unmask.tokens || []);
    if (unmask.trace) this.finish(unmask.trace);
  }

  begin(start) {
    this.start = start;
    this.data = {
      promptPieces: namedPieces(start.prompt_tokens, start.prompt_token_ids), pieces: [], ids: [], steps: [], confidences: [],
      logprobs: [], blocks: [], numSteps: 0, numResponse: null, numForwards: null, finishReason: "", reward: null, answer: null,
      isLive: true, ending: "unmasking",
    };
    // With full attention the model sees the whole canvas from the start; block models take one block after the other.
    this.grow(start.is_block_causal ? Math.min(1, start.num_canvas_tokens) : start.num_canvas_tokens);
  }

  /* Show at least so many canvas positions, and the rest of the last one's block. */
  grow(numPositions) {
    const { data, start } = this;
    const numBefore = start.is_block_causal ? start.prompt_token_ids.length : 0;
    const whole = Math.ceil((numBefore + numPositions) / start.block_size) * start.block_size - numBefore;
    const numShown = numPositions && Math.max(numPositions, Math.min(start.num_canvas_tokens, whole));
    if (numShown <= data.pieces.length) return;
    while (data.pieces.length < numShown) {
      data.pieces.push(UNKNOWN_PIECE);
      data.ids.push(-1);
      data.steps.push(-1);
      data.confidences.push(null);
      data.logprobs.push(null);
    }
    data.blocks = canvasBlocks(numBefore, numShown, start.block_size);
  }

  unmask(step, tokens) {
    const { data } = this;
    // The sequence was put back and decodes this step again: what it, or a later one, had unmasked is void.
    for (let i = 0; step < data.numSteps && i < data.steps.length; i++) {
      if (data.steps[i] < step) continue;
      data.steps[i] = data.ids[i] = -1;
      data.pieces[i] = UNKNOWN_PIECE;
    }
    data.numSteps = step + 1;
    for (const { position, token, token_id: id, confidence, logprob } of tokens) {
      this.grow(position + 1);
      data.pieces[position] = token || `[${id}]`;
      data.ids[position] = id;
      data.steps[position] = step;
      data.confidences[position] = confidence ?? null;
      data.logprobs[position] = logprob ?? null;
    }
  }

  /* From now on the trace is the truth; the events gave the texts of its tokens. */
  finish(trace) {
    const { pieces, ids } = this.data;
    this.record = readRecord({
      id: this.id, member: this.member, trace, prompt_text: this.question, response_text: this.text,
      prompt_pieces: this.start.prompt_tokens,
      canvas_pieces: (trace.canvas_ids || []).map((id, i) => (ids[i] === id ? pieces[i] : "")),
    }, "the server's answer", 1);
    this.data = panelData(this.record, this.start.is_block_causal);
  }

  /* Leave it as it is: it was stopped, or the connection broke. */
  leave(words) {
    if (this.data.isLive) this.data = { ...this.data, isLive: false, ending: "", leftWords: words };
  }
}
