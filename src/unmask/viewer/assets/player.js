/* The clock and its controls. One step of the clock is one denoising step of every panel; the clock runs as long as the
   longest trace, and a panel that ended earlier stands still. While an answer arrives, the clock grows with it: whoever looks
   at its last step sees the next one come.

   window.unmaskPlayer, for scripts:
     goTo(step)      show the canvas after `step` finished steps, cut to 0..numSteps; stops playing
     play(), pause() run from here (from the start again when at the end); stop
     select(index)   show another record, from step 0
     state()         { record, numRecords, step, numSteps, isPlaying, panels: [{ label, step, numSteps, numUnmasked,
                       numResponse, tokensPerForward, text, fresh, isDone, isLive }] }: `text` joins the unmasked response
                       tokens, `fresh` holds the canvas positions unmasked by the last step; record -1: there is none */
"use strict";

/* A whole trace takes about so long at speed 1, within these limits for one step. */
const PLAY_MS = 12000, SLOWEST_STEP_MS = 800, FASTEST_STEP_MS = 60;
/* Between two messages for screen readers: at play, and while an answer arrives (its end is said by the page). */
const ANNOUNCE_EVERY_MS = 3000, ANNOUNCE_LIVE_EVERY_MS = 10000;
const LONGEST_QUESTION = 80;

class TracePlayer {
  constructor(root) {
    this.root = root;
    this.part = (role) => root.querySelector(`[data-role="${role}"]`);
    this.groups = new Map();
    this.panels = [];
    this.step = this.numSteps = 0;
    this.colour = "confidence";
    this.speed = 1;
    this.timer = null;
    this.lastAnnounced = 0;
    this.listen();
    this.showGroups();
  }

  /* Items (see makeItems) that belong together, e.g. those of a file; they replace what the group held before. */
  setGroup(key, name, items, numLeftOut = 0) {
    this.groups.set(key, { name, items, numLeftOut });
    this.showGroups();
  }

  get items() { return Array.from(this.groups.values()).flatMap((group) => group.items); }

  showGroups() {
    const { items } = this;
    const mark = (reward) => (reward === null ? "" : reward >= 1 ? "✓" : reward <= 0 ? "✗" : String(reward));
    const option = (item) => {
      const marks = item.panels.map((panel) => mark(panel.reward)).filter(Boolean).join(" → ");
      const characters = Array.from(item.question);
      const isLong = characters.length > LONGEST_QUESTION;
      const question = (isLong ? `${characters.slice(0, LONGEST_QUESTION - 1).join("")}…` : item.question) + item.note;
      const node = element("option", "", marks ? `${marks}  ${question}` : question);
      node.value = items.indexOf(item);
      return node;
    };
    const groups = Array.from(this.groups.values()).filter((group) => group.items.length);
    this.part("record").replaceChildren(...groups.flatMap((group) => {
      const options = group.items.map(option);
      if (groups.length === 1) return options;
      const parent = element("optgroup");
      parent.label = group.name;
      parent.append(...options);
      return [parent];
    }));
    const num = groups.reduce((sum, group) => sum + group.numLeftOut, 0);
    this.part("left-out").hidden = !num;
    this.part("left-out").textContent =
      `${num} trace${num === 1 ? " has" : "s have"} no counterpart on the other side and ${num === 1 ? "is" : "are"} not shown.`;
    this.root.classList.toggle("is-empty", !items.length);
    if (!items.includes(this.item)) this.select(0); else this.part("record").value = items.indexOf(this.item);
  }

  /* index: a place in `items`, cut to what there is; or one of the items. An answer that arrives is shown as it is now. */
  select(index) {
    this.pause();
    const { items } = this;
    this.item = typeof index === "number" ? items[Math.max(0, Math.min(items.length - 1, index))] : index;
    this.part("record").value = items.indexOf(this.item);
    this.panels = [];
    if (this.item) this.update(this.item, this.item.panels.some((data) => data.isLive) ? Infinity : 0);
  }

  /* What an item holds has changed: more steps of an answer that arrives, or other panels. step: where to go. */
  update(item, step = this.step === this.numSteps ? Infinity : this.step) {
    if (item !== this.item) return;
    const focused = this.panels.findIndex((panel) => panel.root.contains(document.activeElement));
    const index = focused >= 0 && document.activeElement.dataset.index;
    const panels = item.panels.map((data, i) => (this.panels[i] && this.panels[i].data === data
      ? this.panels[i] : new TracePanel(data, item.labels[i], (picked) => this.goTo(picked))));
    if (panels.length !== this.panels.length || panels.some((panel, i) => panel !== this.panels[i])) {
      this.panels = panels;
      this.part("panels").replaceChildren(...panels.map((panel) => panel.root));
      if (index && panels[focused]) panels[focused].focusToken(Number(index));
    }
    for (const panel of panels) if (panel.data.isLive) panel.grow();
    this.root.classList.toggle("is-compare", panels.length > 1);
    this.numSteps = Math.max(...panels.map((panel) => panel.numSteps));
    this.part("scrub").max = this.numSteps;
    this.drawLegend();
    this.show(step);
  }

  show(step) {
    this.step = Math.max(0, Math.min(this.numSteps, Math.round(step)));
    const clock = { numSteps: this.numSteps, highestBar: Math.max(0, ...this.panels.map((panel) => panel.highestBar)) };
    const states = this.panels.map((panel) => panel.draw(this.step, clock, this.colour));
    const scrub = this.part("scrub");
    scrub.value = this.step;
    scrub.setAttribute("aria-valuetext", `step ${this.step} of ${this.numSteps}`);
    this.part("counter").textContent = `step ${this.step} of ${this.numSteps}`;
    if (!this.isPlaying && !states.some((state) => state.isLive)) this.panels.forEach((panel) => panel.showPlainText());
    this.announce(states);
  }

  get isPlaying() { return this.timer !== null; }

  goTo(step) { this.pause(); this.show(step); }

  play() {
    if (this.isPlaying || !this.panels.length) return;
    if (this.step >= this.numSteps) this.show(0);
    this.setTimer();
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    this.drawPlayButton();
    this.panels.forEach((panel) => panel.showPlainText());
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
    if (this.panels.some((panel) => panel.numResponse < panel.tokens.length)) entries.push(entry("after", "after the stop", "ab"));
    const texts = entries.map((node) => node.textContent).join();
    if (texts === this.legend) return; // an answer that arrives asks many times
    this.legend = texts;
    this.part("legend").replaceChildren(...entries);
  }

  /* At most one message per interval, and always the last one. */
  announce(states) {
    this.states = states;
    if (this.announcement) return;
    const every = states.some((state) => state.isLive) ? ANNOUNCE_LIVE_EVERY_MS : ANNOUNCE_EVERY_MS;
    this.announcement = setTimeout(() => {
      this.announcement = null;
      this.lastAnnounced = Date.now();
      this.part("live").textContent = this.states.map((state) => (state.label ? `${state.label}: ` : "")
        + `step ${state.step} of ${state.numSteps}, ${state.numUnmasked} of ${state.numResponse} tokens unmasked`).join(". ");
    }, Math.max(300, this.lastAnnounced + every - Date.now()));
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

  /* Scroll to the panels unless their beginning is in sight. */
  bringIntoView() {
    if (this.part("panels").getBoundingClientRect().top < 0.6 * innerHeight) return;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.root.scrollIntoView({ block: "start", behavior: isCalm ? "auto" : "smooth" });
  }

  state() {
    const { items } = this;
    return {
      record: items.indexOf(this.item), numRecords: items.length, step: this.step, numSteps: this.numSteps, isPlaying: this.isPlaying,
      panels: this.panels.map((panel) => panel.stateAt(this.step)),
    };
  }
}

/* The player of the page, if there is one, with the records that the page was made with. */
const thePlayer = (() => {
  const root = document.getElementById("player");
  if (!root) return null;
  const player = new TracePlayer(root);
  window.unmaskPlayer = {
    goTo: (step) => player.goTo(step),
    play: () => player.play(),
    pause: () => player.pause(),
    select: (index) => player.select(index),
    state: () => player.state(),
  };
  const { name, records, compare, labels } = JSON.parse(document.getElementById("player-data").textContent);
  if (records.length) {
    const { items, numLeftOut } = makeItems(records, compare, labels);
    player.setGroup("file", name, items, numLeftOut);
    player.playWhenSeen();
  }
  return player;
})();
