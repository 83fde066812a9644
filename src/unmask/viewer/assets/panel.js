/* One trace as text flow: the prompt, then the canvas with its blocks, drawn as it was after any number of steps.
   Every text that comes from a record enters the page through textContent or setAttribute. */
"use strict";

/* A token goes to the first class whose upper edge lies above its confidence. */
const CONFIDENCE_EDGES = [0.5, 0.75, 0.9, 0.99];
const CONFIDENCE_NAMES = ["under 0.5", "0.5 to 0.75", "0.75 to 0.9", "0.9 to 0.99", "0.99 and more"];
const NUM_STEP_CLASSES = 6;
/* Prompt tokens shown before the answer; the earlier ones appear on request. */
const NUM_PROMPT_SHOWN = 100;

const NAMED_CONTROLS = { "\n": "⏎", "\t": "⇥", "\r": "␍", "\u007f": "␡" };

/* Control characters become their pictures: a line break inside a token is something to see. */
function visiblePiece(piece) {
  return piece.replace(/[\u0000-\u001f\u007f]/g,
    (c) => NAMED_CONTROLS[c] || String.fromCharCode(0x2400 + c.charCodeAt(0)));
}

/* A masked box is as wide as the token to come, so that the text stands still while it appears. The box holds blanks,
   not the token: what is masked can be neither searched nor read aloud. */
function blanks(piece) {
  return "\u00a0".repeat(Math.min(24, Math.max(1, Array.from(visiblePiece(piece)).length)));
}

function formatNumber(value, digits) {
  return value === null ? "not finite" : value.toFixed(digits).replace("-", "−");
}

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

class TracePanel {
  /* data: see panelData in records.js; while an answer arrives (isLive) it grows and `draw` shows what is new.
     label: "" without comparison; onPick(step): a bar of the histogram was chosen. */
  constructor(data, label, onPick) {
    this.data = data;
    this.label = label;
    this.root = document.getElementById("panel-template").content.firstElementChild.cloneNode(true);
    this.part = (role) => this.root.querySelector(`[data-role="${role}"]`);
    this.histogram = new StepHistogram(this.part("histogram"), onPick);
    this.tokens = [];
    this.drawn = [];
    this.numBlocks = 0;
    this.part("label").textContent = label || "Answer";
    this.root.classList.toggle("is-live", data.isLive);
    this.showVerdict();
    this.addPrompt();
    this.grow();
    this.listen();
  }

  get numSteps() { return this.data.numSteps; }

  /* Tokens that count: while it is not known where the answer ends, all. */
  get numResponse() { return this.data.numResponse ?? this.data.pieces.length; }

  showVerdict() {
    const { reward, answer } = this.data;
    if (reward === null) return;
    const node = this.part("verdict");
    node.hidden = false;
    node.classList.add(reward >= 1 ? "right" : reward <= 0 ? "wrong" : "partial");
    node.textContent = reward >= 1 ? "✓ right" : reward <= 0 ? "✗ wrong" : `reward ${reward}`;
    if (answer !== null) node.title = `expected answer: ${answer}`;
  }

  addPrompt() {
    const { promptPieces, blocks } = this.data;
    const numHidden = Math.max(0, promptPieces.length - NUM_PROMPT_SHOWN);
    const numTail = blocks.length ? blocks[0][1] : 0;
    this.addPromptTokens(this.part("canvas"), 0, promptPieces.length - numTail);
    if (!numHidden) return;
    const more = this.part("more");
    more.hidden = false;
    more.textContent = `Show ${numHidden} earlier prompt tokens`;
    more.addEventListener("click", () => { this.root.classList.add("show-early"); more.hidden = true; });
  }

  addPromptTokens(parent, from, to) {
    const { promptPieces } = this.data;
    for (let i = from; i < to; i++) {
      this.addToken(parent, promptPieces[i], i < promptPieces.length - NUM_PROMPT_SHOWN ? "tok prompt early" : "tok prompt");
    }
  }

  /* Blocks that are new since the last time. */
  grow() {
    const { promptPieces, blocks, steps, numSteps } = this.data;
    for (const [index, numPrompt, first, stop] of blocks.slice(this.numBlocks)) {
      const block = element("span", "block");
      block.dataset.block = index;
      this.addPromptTokens(block, promptPieces.length - numPrompt, promptPieces.length);
      for (let i = first; i < stop; i++) {
        const token = this.addToken(block, this.data.pieces[i], "tok");
        token.dataset.index = i;
        token.dataset.block = index;
        token.setAttribute("role", "img");
        token.tabIndex = i === 0 ? 0 : -1;
        this.tokens.push(token);
      }
      this.part("canvas").append(block, document.createElement("wbr"));
    }
    this.numBlocks = blocks.length;
    this.highestBar = this.histogram.count(steps, numSteps);
  }

  addToken(parent, piece, className) {
    const token = element("span", className, visiblePiece(piece));
    parent.append(token);
    this.breakLines(token, piece);
    return token;
  }

  /* A token that holds line breaks is followed by as many, whether it is masked or not. */
  breakLines(token, piece) {
    const breaks = [];
    for (let next = token.nextSibling; next && next.tagName === "BR"; next = next.nextSibling) breaks.push(next);
    const numBreaks = piece.split("\n").length - 1;
    breaks.slice(numBreaks).forEach((node) => node.remove());
    for (let n = breaks.length; n < numBreaks; n++) token.after(element("br", token.classList.contains("early") ? "early" : ""));
  }

  isUnmasked(i, step) {
    return this.data.steps[i] >= 0 && this.data.steps[i] < step;
  }

  /* The counts after `step` steps; a trace that has ended stays at its last step. */
  stateAt(step) {
    const now = Math.min(step, this.numSteps);
    const { steps, pieces, isLive } = this.data;
    const fresh = [];
    let numUnmasked = 0, text = "";
    for (let i = 0; i < steps.length; i++) {
      if (now > 0 && steps[i] === now - 1) fresh.push(i);
      if (i < this.numResponse && this.isUnmasked(i, now)) { numUnmasked++; text += pieces[i]; }
    }
    const isDone = !isLive && now === this.numSteps;
    // At the end the trace's own count of forwards holds, also where a sampler spent more than one a step.
    const numForwards = isDone ? this.data.numForwards || now : now;
    const tokensPerForward = numForwards ? numUnmasked / numForwards : 0;
    return {
      label: this.label, step: now, numSteps: this.numSteps, numUnmasked, numResponse: this.numResponse, tokensPerForward, text,
      fresh, isDone, isLive,
    };
  }

  /* step: finished steps on the common clock; clock: { numSteps, highestBar } of all panels; colour: "confidence" | "step". */
  draw(step, clock, colour) {
    const state = this.stateAt(step);
    // A panel that ended earlier shows no token as new: nothing happens there any more.
    const fresh = step > this.numSteps && !this.data.isLive ? -1 : state.step - 1;
    for (let i = 0; i < this.tokens.length; i++) this.drawToken(i, state.step, fresh, clock.numSteps, colour);
    const hasEnded = state.isDone && (this.numSteps > 0 || Boolean(this.data.leftWords));
    this.root.classList.toggle("is-done", hasEnded);
    this.part("done").textContent = this.data.isLive ? this.data.ending : hasEnded ? this.ending() : "";
    this.part("step").textContent = `${state.step} of ${this.numSteps}`;
    this.part("unmasked").textContent = this.data.numResponse === null ? state.numUnmasked : `${state.numUnmasked} of ${this.numResponse}`;
    this.part("tpf").textContent = state.step ? state.tokensPerForward.toFixed(2) : "–";
    this.histogram.draw(state.step, fresh, clock.numSteps, clock.highestBar);
    if (this.tipFor !== undefined) this.showTip(this.tipFor);
    return state;
  }

  ending() {
    const steps = `${this.numSteps} step${this.numSteps === 1 ? "" : "s"}`;
    if (this.data.leftWords) return `${this.data.leftWords} after ${steps}`;
    if (this.data.finishReason === "length") return `${steps}, cut at the limit of tokens`;
    return this.data.finishReason === "abort" ? `taken out after ${steps}` : `done in ${steps}`;
  }

  drawToken(i, step, fresh, numClockSteps, colour) {
    const { steps, confidences, pieces, isLive } = this.data;
    const unmasked = this.isUnmasked(i, step);
    let className = "tok";
    if (i >= this.numResponse) className += " after";
    if (!unmasked) {
      className += " masked";
    } else {
      if (steps[i] === fresh) className += " fresh";
      const confidence = confidences[i] === null ? 0 : confidences[i];
      className += colour === "step"
        ? ` s${Math.min(NUM_STEP_CLASSES - 1, Math.floor((NUM_STEP_CLASSES * steps[i]) / numClockSteps))}`
        : ` c${CONFIDENCE_EDGES.filter((edge) => confidence >= edge).length}`;
    }
    const key = `${className} ${steps[i]} ${pieces[i]}`; // while it arrives, a token may become another one
    if (this.drawn[i] === key) return;
    this.drawn[i] = key;
    const token = this.tokens[i];
    token.className = className;
    token.textContent = unmasked ? visiblePiece(pieces[i]) : blanks(steps[i] < 0 && !isLive ? " " : pieces[i]);
    if (isLive) this.breakLines(token, pieces[i]);
    token.setAttribute("aria-label", this.describe(i, unmasked).join(", "));
  }

  describe(i, unmasked) {
    const { promptPieces, pieces, ids, steps, confidences, logprobs, isLive } = this.data;
    const place = [
      `canvas position ${i} (${promptPieces.length + i} in the sequence)`, `block ${this.tokens[i].dataset.block}`,
    ];
    if (!unmasked) return ["masked", ...place, steps[i] < 0 && !isLive ? "never unmasked" : "not yet unmasked"];
    const lines = [
      visiblePiece(pieces[i]), ...place, `unmasked in step ${steps[i] + 1}${isLive ? "" : ` of ${this.numSteps}`}`,
      `confidence ${formatNumber(confidences[i], 3)}`, `log-prob ${formatNumber(logprobs[i], 3)}`, `token id ${ids[i]}`,
    ];
    if (i >= this.numResponse) lines.push("after the stop: not part of the response");
    return lines;
  }

  /* For screen readers: the answer so far as one text. Set only when the player stands still. */
  showPlainText() {
    this.part("plain").textContent = `Answer so far: ${this.tokens
      .slice(0, this.numResponse).map((token) => (token.classList.contains("masked") ? "▒" : token.textContent)).join("")}`;
  }

  listen() {
    const canvas = this.part("canvas");
    const indexOf = (event) => event.target.dataset && event.target.dataset.index;
    const show = (event) => (indexOf(event) === undefined ? this.hideTip() : this.showTip(Number(indexOf(event))));
    canvas.addEventListener("pointerover", show);
    canvas.addEventListener("focusin", show);
    canvas.addEventListener("pointerleave", () => this.hideTip());
    canvas.addEventListener("focusout", () => this.hideTip());
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape" && this.tipFor !== undefined) {
        event.stopPropagation(); // that it does something else elsewhere is not meant now
        this.hideTip();
      }
      if (!move) return;
      // With the focus on a token the arrows walk through the tokens, not through the steps.
      event.stopPropagation();
      event.preventDefault();
      this.focusToken(Number(indexOf(event)) + move);
    });
  }

  /* One token at a time can be reached with the tabulator. */
  focusToken(i) {
    if (!this.tokens[i]) return;
    for (const token of this.tokens) token.tabIndex = -1;
    this.tokens[i].tabIndex = 0;
    this.tokens[i].focus();
  }

  showTip(i) {
    this.tipFor = i;
    const tip = this.part("tip"), token = this.tokens[i];
    tip.replaceChildren(...this.describe(i, !token.classList.contains("masked")).map((line) => element("div", "", line)));
    tip.hidden = false;
    const frame = this.root.getBoundingClientRect(), box = token.getBoundingClientRect();
    const left = Math.min(box.left - frame.left, frame.width - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    // Above the token where the lower edge of the window (and the controls that stick to it) would cover the tip.
    const isLow = box.bottom + tip.offsetHeight + 90 > window.innerHeight && box.top > tip.offsetHeight + 12;
    tip.style.top = `${isLow ? box.top - frame.top - tip.offsetHeight - 6 : box.bottom - frame.top + 6}px`;
  }

  hideTip() {
    this.tipFor = undefined;
    this.part("tip").hidden = true;
  }
}
