/* How many tokens each denoising step unmasked: one bar a step, with the steps of all panels on one scale. */
"use strict";

/* A short trace does not fill the row: its bars would be slabs. While an answer arrives, the scale holds still for so long. */
const LEAST_BARS = 40;
/* So many counts are read out one by one; of more, only what they are like. */
const MOST_COUNTS_SPOKEN = 40;

class StepHistogram {
  /* figure: the element of the panel's template; onPick(step): a bar was chosen, `step` finished steps. */
  constructor(figure, onPick) {
    this.svg = figure.querySelector("svg");
    this.bars = ["past", "now", "later"].map((name) => figure.querySelector(`.bar-${name}`));
    this.note = figure.querySelector('[data-role="bar-note"]');
    this.numBars = LEAST_BARS;
    const pick = (event) => {
      const box = this.svg.getBoundingClientRect();
      const bar = Math.floor(((event.clientX - box.left) / box.width) * this.numBars);
      onPick(Math.max(0, Math.min(this.counts.length - 1, bar)) + 1);
    };
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.svg.setPointerCapture(event.pointerId);
      pick(event);
    });
    this.svg.addEventListener("pointermove", (event) => { if (this.svg.hasPointerCapture(event.pointerId)) pick(event); });
  }

  /* Take new counts over: tokens by step, from steps by token. Returns the largest. */
  count(steps, numSteps) {
    this.counts = new Array(numSteps).fill(0);
    for (const step of steps) if (step >= 0 && step < numSteps) this.counts[step]++;
    return this.counts.reduce((most, count) => Math.max(most, count), 0);
  }

  /* step: finished steps; now: the step to mark, -1 for none; numClockSteps, highest: the scales common to all panels. */
  draw(step, now, numClockSteps, highest) {
    this.numBars = Math.max(LEAST_BARS, numClockSteps);
    this.svg.setAttribute("viewBox", `0 0 ${this.numBars} ${Math.max(1, highest)}`);
    const gap = this.numBars > 150 ? 0 : 0.1;
    const paths = ["", "", ""];
    this.counts.forEach((count, i) => {
      if (!count) return;
      const kind = i === now ? 1 : i < step ? 0 : 2;
      const width = kind === 1 ? Math.max(1 - 2 * gap, this.numBars / 250) : 1 - 2 * gap; // the current step is never a hair
      paths[kind] += `M${i + gap} ${highest}v${-count}h${width}v${count}z`;
    });
    this.bars.forEach((bar, kind) => bar.setAttribute("d", paths[kind]));
    const tokens = (count) => `${count} token${count === 1 ? "" : "s"}`;
    this.note.textContent = now >= 0 ? `step ${now + 1}: ${tokens(this.counts[now])}` : highest ? `at most ${this.most()}` : "";
    this.svg.setAttribute("aria-label", this.describe());
  }

  most() { return Math.max(0, ...this.counts); }

  describe() {
    const numSteps = this.counts.length;
    if (!numSteps) return "Tokens unmasked by each step: none yet";
    if (numSteps <= MOST_COUNTS_SPOKEN) return `Tokens unmasked by each step, from the first: ${this.counts.join(", ")}`;
    const mean = this.counts.reduce((sum, count) => sum + count, 0) / numSteps;
    return `Tokens unmasked by each of ${numSteps} steps: from ${Math.min(...this.counts)} to ${this.most()}, ${mean.toFixed(2)} on average`;
  }
}
