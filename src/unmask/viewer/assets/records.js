/* From the text of a traces.jsonl to what the panels draw: reading lines, blocks, pairs. No DOM here.

   A record has the fields of TraceRecord (types/trace.py); those that the page does not show may be missing. What is wrong
   with one is an Error whose message is meant for the reader. */
"use strict";

const isText = (value) => typeof value === "string";
const isWhole = (least) => (value) => Number.isSafeInteger(value) && value >= least;
const isNumber = (value) => value === null || typeof value === "number"; // null: NaN and infinities, which JSON does not know
const isList = (value) => Array.isArray(value);

/* Field -> what it must be, in words; how to see it; and the same for the entries of a list. */
const COUNT = ["a whole number of at least 0", isWhole(0)];
const IDS = ["a list", isList, ...COUNT];
const NUMBERS = ["a list", isList, "a number", isNumber];
const PIECES = ["a list", isList, "a text", isText];
const TRACE_FIELDS = {
  prompt_ids: IDS, canvas_ids: IDS, step_map: ["a list", isList, "a whole number of at least -1", isWhole(-1)],
  logprobs: NUMBERS, confidences: NUMBERS, num_response_tokens: COUNT,
  block_size: ["a whole number of at least 1", isWhole(1)], num_forwards: COUNT, finish_reason: ["a text", isText],
};
const RECORD_FIELDS = { id: ["a text", isText] };
const OPTIONAL_FIELDS = {
  prompt_text: ["a text", isText], prompt_pieces: PIECES, canvas_pieces: PIECES,
  answer: ["a text or null", (value) => value === null || isText(value)], reward: ["a number or null", isNumber],
};

function found(value) {
  if (isList(value)) return "a list";
  const text = JSON.stringify(value);
  return text.length > 40 ? `${text.slice(0, 39)}…` : text;
}

function checkFields(data, fields, where, isOptional) {
  for (const [name, [words, is, entryWords, isEntry]] of Object.entries(fields)) {
    if (data[name] === undefined) {
      if (isOptional) continue;
      throw new Error(`${where}: field "${name}" is missing`);
    }
    if (!is(data[name])) throw new Error(`${where}: ${name} should be ${words}, found ${found(data[name])}`);
    const wrong = isEntry ? data[name].findIndex((entry) => !isEntry(entry)) : -1;
    if (wrong >= 0) throw new Error(`${where}: ${name}[${wrong}] should be ${entryWords}, found ${found(data[name][wrong])}`);
  }
}

/* A record from parsed JSON; a bare trace becomes a record that is called after its line. */
function readRecord(data, where, number) {
  if (data === null || typeof data !== "object" || isList(data)) throw new Error(`${where}: expected a JSON object, found ${found(data)}`);
  const record = data.trace === undefined && data.canvas_ids !== undefined ? { id: `line ${number}`, trace: data } : data;
  checkFields(record, RECORD_FIELDS, where);
  const trace = record.trace;
  if (trace === undefined) throw new Error(`${where}: field "trace" is missing`);
  if (trace === null || typeof trace !== "object" || isList(trace)) throw new Error(`${where}: trace should be an object, found ${found(trace)}`);
  checkFields(trace, TRACE_FIELDS, where);
  checkFields(record, OPTIONAL_FIELDS, where, true);
  const numCanvas = trace.canvas_ids.length;
  const lengths = [
    ["step_map", trace.step_map, numCanvas], ["logprobs", trace.logprobs, numCanvas], ["confidences", trace.confidences, numCanvas],
    ["prompt_pieces", record.prompt_pieces, trace.prompt_ids.length], ["canvas_pieces", record.canvas_pieces, numCanvas],
  ];
  for (const [name, list, expected] of lengths) {
    const isLeftOut = name.endsWith("pieces") && !(list && list.length);
    if (!isLeftOut && list.length !== expected) throw new Error(`${where}: ${name} has ${list.length} entries for ${expected} tokens`);
  }
  if (trace.num_response_tokens > numCanvas) {
    throw new Error(`${where}: num_response_tokens ${trace.num_response_tokens} is more than the ${numCanvas} canvas tokens`);
  }
  return record;
}

/* JSON as Python writes it: NaN, Infinity and -Infinity (outside of texts) are read as null. */
function parsePythonJson(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    const plain = text.replace(/"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)/g, (part) => (part[0] === '"' ? part : "null"));
    if (plain === text) throw error;
    return JSON.parse(plain);
  }
}

/* The records of a file, given as bytes. Throws an Error of one line that names the file, the line and what is wrong. */
function readRecords(bytes, name) {
  const records = [];
  const decoder = new TextDecoder("utf-8", { fatal: true }); // drops a byte order mark
  for (let number = 1, start = 0; start < bytes.length; number++) {
    const end = bytes.indexOf(10, start) < 0 ? bytes.length : bytes.indexOf(10, start);
    const where = `${name}, line ${number}`;
    let text, data;
    try {
      text = decoder.decode(bytes.subarray(start, end)).trim();
    } catch {
      throw new Error(`${where}: not UTF-8 text`);
    }
    start = end + 1;
    if (!text) continue;
    try {
      data = parsePythonJson(text);
    } catch (error) {
      throw new Error(`${where}: not JSON (${error.message})`);
    }
    records.push(readRecord(data, where, number));
  }
  if (!records.length) throw new Error(`${name}: holds no traces; expected one JSON object per line`);
  return records;
}

/* The blocks that a canvas touches, as [block index, tokens of the prompt in it, first canvas index, past the last]. Canvas
   token i is in block floor((numBefore + i) / blockSize); only the first block can hold tokens of the prompt. */
function canvasBlocks(numBefore, numCanvas, blockSize) {
  const blocks = [];
  for (let start = 0, stop; start < numCanvas; start = stop) {
    const numTail = (numBefore + start) % blockSize;
    stop = Math.min(numCanvas, start + blockSize - numTail);
    blocks.push([Math.floor((numBefore + start) / blockSize), numTail, start, stop]);
  }
  return blocks;
}

/* Is every block finished before the next one begins? */
function isInOrder(blocks, steps) {
  let last = -1;
  return blocks.every(([, , first, stop]) => {
    const before = last;
    let earliest = Infinity;
    for (let i = first; i < stop; i++) {
      if (steps[i] < 0) continue;
      earliest = Math.min(earliest, steps[i]);
      last = Math.max(last, steps[i]);
    }
    return earliest > before;
  });
}

/* Blocks of block models lie on absolute positions; the windows of models with full attention begin with the canvas. A trace
   does not say which it is, but blocks are decoded in order: where only windows are in order, it has windows. */
function traceBlocks(trace, isBlockCausal) {
  const sizes = [trace.canvas_ids.length, trace.block_size];
  const blocks = canvasBlocks(trace.prompt_ids.length, ...sizes), windows = canvasBlocks(0, ...sizes);
  const hasBlocks = isBlockCausal ?? (isInOrder(blocks, trace.step_map) || !isInOrder(windows, trace.step_map));
  return hasBlocks ? blocks : windows;
}

/* Tokens as text; an id without text (no pieces recorded, or half a character) is shown as [id]. */
function namedPieces(pieces, ids) {
  return ids.map((id, i) => (pieces && pieces[i]) || `[${id}]`);
}

/* What a TracePanel draws. isBlockCausal: whether blocks lie on absolute positions, where that is known. */
function panelData(record, isBlockCausal) {
  const { trace } = record;
  return {
    promptPieces: namedPieces(record.prompt_pieces, trace.prompt_ids),
    pieces: namedPieces(record.canvas_pieces, trace.canvas_ids),
    ids: trace.canvas_ids, steps: trace.step_map, confidences: trace.confidences, logprobs: trace.logprobs,
    blocks: traceBlocks(trace, isBlockCausal),
    numSteps: trace.step_map.reduce((most, step) => Math.max(most, step + 1), 0),
    numResponse: trace.num_response_tokens, numForwards: trace.num_forwards, finishReason: trace.finish_reason,
    reward: record.reward ?? null, answer: record.answer ?? null, isLive: false,
  };
}

/* Records with the same id, in the order of the first list; the n-th of an id meets the n-th of that id. */
function pairRecords(records, compare) {
  const waiting = new Map();
  for (const record of compare) {
    if (!waiting.has(record.id)) waiting.set(record.id, []);
    waiting.get(record.id).push(record);
  }
  const pairs = records.map((record) => [record, (waiting.get(record.id) || []).shift()]).filter(([, other]) => other);
  if (pairs.length) return pairs;
  throw new Error(`the two sets of traces have no id in common (first ids: "${records[0].id}" and "${compare[0].id}")`);
}

function questionOf(record) {
  const text = record.prompt_text || (record.prompt_pieces || []).join("");
  return text.split(/\s+/).filter(Boolean).join(" ") || record.id;
}

/* What the player shows: one item a record, or one a pair. compare: null without a second list; labels: of the two. */
function makeItems(records, compare, labels) {
  const groups = compare ? pairRecords(records, compare) : records.map((record) => [record]);
  const items = groups.map((group) => ({
    question: questionOf(group[0]),
    note: "",
    labels: compare ? labels : [""],
    panels: group.map((record) => panelData(record)),
  }));
  return { items, numLeftOut: compare ? records.length + compare.length - 2 * groups.length : 0 };
}
