/* The clock and its controls. One step of the clock is one denoising step of every panel; the clock runs as long as the
   longest trace, and a panel that ended earlier stands still.

   window.unmaskPlayer, for scripts:
     goTo(step)      show the canvas after `step` finished steps, cut to 0..numSteps; stops playing
     play(), pause() run from here (from the start again when at the end); stop
     select(index)   show another record, from step 0
     state()         { record, step, numSteps, isPlaying, panels: [{ label, step, numSteps, numUnmasked, numResponse,
                       tokensPerForward, text, fresh, isDone }] }: `text` joins the unmasked response tokens, `fresh`
                       holds the canvas positions unmasked by the last step */
"use strict";

/* A whole trace takes about so long at speed 1, within these limits for one step. */
const PLAY_MS = 12000, SLOWEST_STEP_MS = 800, FASTEST_STEP_MS = 60;
const ANNOUNCE_EVERY_MS = 3000;

class TracePlayer {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.part = (role) => root.querySelector(`[data-role="${role}"]`);
    this.colour = "confidence";
    this.speed = 1;
    this.timer = null;
    this.lastAnnounced = 0;
    this.fillRecords();
    this.listen();
    this.select(0);
  }

  fillRecords() {
    const mark = (reward) => (reward === null ? "" : reward >= 1 ? "✓" : reward <= 0 ? "✗" : String(reward));
    for (const [index, item] of this.data.items.entries()) {
      const marks = item.panels.map((panel) => mark(panel.reward)).filter(Boolean).join(" → ");
      const characters = Array.from(item.question);
      const question = characters.length > 80 ? `${characters.slice(0, 79).join("")}…` : item.question;
      const option = element("option", "", marks ? `${marks}  ${question}` : question);
      option.value = index;
      this.part("record").append(option);
    }
    if (this.data.numLeftOut) {
      const isOne = this.data.numLeftOut === 1;
      this.part("left-out").hidden = false;
      this.part("left-out").textContent =
        `${this.data.numLeftOut} trace${isOne ? " has" : "s have"} no counterpart on the other side and ${isOne ? "is" : "are"} not shown.`;
    }
  }

  select(index) {
    this.pause();
    this.record = Math.max(0, Math.min(this.data.items.length - 1, index));
    this.part("record").value = this.record;
    this.panels = this.data.items[this.record].panels.map((panel, i) => new TracePanel(panel, this.data.labels[i] || ""));
    this.numSteps = Math.max(...this.panels.map((panel) => panel.numSteps));
    this.part("panels").replaceChildren(...this.panels.map((panel) => panel.root));
    this.root.classList.toggle("is-compare", this.panels.length > 1);
    this.part("scrub").max = this.numSteps;
    this.drawLegend();
    this.show(0);
  }

  show(step) {
    this.step = Math.max(0, Math.min(this.numSteps, Math.round(step)));
    const states = this.panels.map((panel) => panel.draw(this.step, this.numSteps, this.colour));
    const scrub = this.part("scrub");
    scrub.value = this.step;
    scrub.setAttribute("aria-valuetext", `step ${this.step} of ${this.numSteps}`);
    this.part("counter").textContent = `step ${this.step} of ${this.numSteps}`;
    if (!this.isPlaying) this.panels.forEach((panel) => panel.showPlainText());
    this.announce(states);
  }

  get isPlaying() { return this.timer !== null; }

  goTo(step) { this.pause(); this.show(step); }

  play() {
    if (this.isPlaying) return;
    if (this.step >= this.numSteps) this.show(0);
    this.setTimer();
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    this.drawPlayButton();
    if (this.panels) this.panels.forEach((panel) => panel.showPlainText());
  }

  toggle() { if (this.isPlaying) this.pause(); else this.play(); }

  setTimer() {
    const stepMs = Math.max(FASTEST_STEP_MS, Math.min(SLOWEST_STEP_MS, PLAY_MS / Math.max(1, this.numSteps)));
    this.timer = setTimeout(() => {
      this.show(this.step + 1);
      if (this.step < this.numSteps) this.setTimer(); else this.pause();
    }, stepMs / this.speed);
    this.drawPlayButton();
  }

  drawPlayButton() {
    this.root.classList.toggle("is-playing", this.isPlaying);
    this.part("play").setAttribute("aria-label", this.isPlaying ? "Pause" : "Play");
  }

  drawLegend() {
    const entry = (className, text, sample = "\u00a0\u00a0") => {
      const item = element("li");
      item.append(element("span", `swatch tok ${className}`, sample), element("span", "", text));
      return item;
    };
    const entries = this.colour === "confidence"
      ? CONFIDENCE_NAMES.map((name, i) => entry(`c${i}`, name))
      : Array.from({ length: NUM_STEP_CLASSES }, (_, i) =>
          entry(`s${i}`, i === 0 ? "first steps" : i === NUM_STEP_CLASSES - 1 ? `last steps (of ${this.numSteps})` : ""));
    entries.unshift(entry("masked", "masked"), entry("fresh", "new in this step"));
    if (this.panels.some((panel) => panel.data.numResponse < panel.tokens.length)) entries.push(entry("after", "after the stop", "ab"));
    this.part("legend").replaceChildren(...entries);
  }

  /* At most one message per interval while playing, and always the last one. */
  announce(states) {
    clearTimeout(this.announcement);
    const say = () => {
      this.lastAnnounced = Date.now();
      this.part("live").textContent = states.map((state) => (state.label ? `${state.label}: ` : "")
        + `step ${state.step} of ${state.numSteps}, ${state.numUnmasked} of ${state.numResponse} tokens unmasked`).join(". ");
    };
    this.announcement = setTimeout(say, Math.max(300, this.lastAnnounced + ANNOUNCE_EVERY_MS - Date.now()));
  }

  listen() {
    this.part("play").addEventListener("click", () => this.toggle());
    this.part("back").addEventListener("click", () => this.goTo(this.step - 1));
    this.part("forward").addEventListener("click", () => this.goTo(this.step + 1));
    this.part("scrub").addEventListener("input", (event) => this.goTo(Number(event.target.value)));
    this.part("record").addEventListener("change", (event) => this.select(Number(event.target.value)));
    this.part("speed").addEventListener("change", (event) => { this.speed = Number(event.target.value); });
    for (const radio of this.root.querySelectorAll('input[name="colour"]')) {
      radio.addEventListener("change", () => { this.colour = radio.value; this.drawLegend(); this.show(this.step); });
    }
    const scope = this.root.dataset.keys === "page" ? document : this.root;
    scope.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
    const kind = event.target.type === "range" ? "range" : (event.target.tagName || "").toLowerCase();
    // What a control does with a key of its own comes first.
    if (["select", "textarea", "input", "summary", "a"].includes(kind)) return;
    if (kind === "range" && event.key !== " ") return;
    if (kind === "button" && event.key === " ") return;
    const actions = {
      " ": () => this.toggle(),
      ArrowLeft: () => this.goTo(this.step - 1),
      ArrowRight: () => this.goTo(this.step + 1),
      Home: () => this.goTo(0),
      End: () => this.goTo(this.numSteps),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  /* Play once when the player comes into view, unless the reader asked for less motion or was faster. */
  playWhenSeen() {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const stop = () => { observer.disconnect(); removeListeners(); };
    const kinds = ["pointerdown", "keydown", "input"];
    const removeListeners = () => kinds.forEach((kind) => this.root.removeEventListener(kind, stop));
    const observer = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) { stop(); if (this.step === 0) this.play(); }
    }, { rootMargin: "-20% 0px" });
    kinds.forEach((kind) => this.root.addEventListener(kind, stop));
    observer.observe(this.part("panels"));
  }

  state() {
    return {
      record: this.record, step: this.step, numSteps: this.numSteps, isPlaying: this.isPlaying,
      panels: this.panels.map((panel) => panel.stateAt(this.step)),
    };
  }
}

(() => {
  const root = document.getElementById("player");
  if (!root) return;
  const player = new TracePlayer(root, JSON.parse(document.getElementById("player-data").textContent));
  window.unmaskPlayer = {
    goTo: (step) => player.goTo(step),
    play: () => player.play(),
    pause: () => player.pause(),
    select: (index) => player.select(index),
    state: () => player.state(),
  };
  player.playWhenSeen();
})();
