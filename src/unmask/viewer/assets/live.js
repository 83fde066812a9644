/* The page of a server: the form, the answers of this session, and what to tell while one arrives. */
"use strict";

/* An answer is drawn at most so often; events come faster than anybody can see. */
const DRAW_EVERY_MS = 40;
const STRATEGIES = { low_confidence_static: "static", low_confidence_dynamic: "dynamic", entropy_bounded: "entropy bounded" };
/* Where a setting belongs in the request; the others are fields of its `unmask`. */
const OPENAI_SETTINGS = ["temperature", "max_tokens", "seed"];

class LivePage {
  constructor(form, player, defaults) {
    this.form = form;
    this.player = player;
    this.part = (role) => form.querySelector(`[data-role="${role}"]`);
    this.settings = Array.from(form.querySelectorAll("[name]"));
    this.items = []; // of this session, the newest last
    this.numAsked = 0;
    this.abort = null;
    this.fill(defaults);
    this.listen();
    this.showSettings();
  }

  fill(defaults) {
    for (const field of this.settings) {
      const value = defaults[field.name];
      if (value === null || value === undefined) continue;
      if (field.tagName === "SELECT" && !Array.from(field.options).some((option) => option.value === value)) {
        field.append(element("option", "", value));
      }
      field.value = value;
    }
  }

  /* What is not used is switched off; what is used is summed up where the settings are folded. */
  showSettings() {
    const field = (name) => this.settings.find((other) => other.name === name);
    const isCompare = this.part("compare").checked, strategy = field("remasking_strategy");
    strategy.disabled = isCompare;
    field("confidence_threshold").disabled = !isCompare && !["", "low_confidence_dynamic"].includes(strategy.value);
    const words = isCompare || strategy.value ? [isCompare ? "static and dynamic" : this.strategyName] : [];
    const add = (name, before, after = "") => {
      if (field(name).value !== "" && !field(name).disabled) words.push(before + field(name).value + after);
    };
    add("confidence_threshold", "above ");
    add("temperature", "temperature ");
    add("max_tokens", "at most ", " tokens");
    add("seed", "seed ");
    this.part("settings-now").textContent = words.join(" · ");
  }

  get strategyName() {
    const { value } = this.settings.find((field) => field.name === "remasking_strategy");
    return STRATEGIES[value] || value;
  }

  /* The body of a request; what the reader left empty is left out. */
  body(question, strategy) {
    const system = this.part("system").value.trim();
    const body = {
      messages: [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: question }],
      stream: true, stream_options: { include_usage: true }, unmask: { stream_unmask: true, return_trace: true },
    };
    for (const field of this.settings) {
      if (field.disabled || field.value === "") continue;
      const part = OPENAI_SETTINGS.includes(field.name) ? body : body.unmask;
      part[field.name] = field.type === "number" ? field.valueAsNumber : field.value;
    }
    if (strategy) body.unmask.remasking_strategy = strategy;
    return body;
  }

  async ask() {
    if (this.abort || !this.isValid()) return;
    const question = this.part("question").value.trim();
    const isCompare = this.part("compare").checked;
    const strategies = isCompare ? ["low_confidence_static", "low_confidence_dynamic"] : [""];
    const answers = strategies.map((_, i) => new LiveAnswer(question, `question ${this.numAsked + 1}`, i));
    const words = isCompare ? "static, dynamic" : this.strategyName;
    const item = {
      question: `${++this.numAsked}. ${question.replace(/\s+/g, " ")}`,
      note: words && ` (${words})`,
      labels: isCompare ? ["static", "dynamic"] : [""],
      panels: answers.map((answer) => answer.data),
      answers,
    };
    this.seenBefore = this.player.item;
    this.items.push(item);
    this.showItems(item);
    this.player.bringIntoView();
    this.start();

    const { signal } = this.abort;
    const problems = await Promise.all(answers.map(async (answer, i) => {
      try {
        const body = this.body(question, strategies[i]);
        await streamAnswer(body, this.part("key").value.trim(), signal, answer, () => this.draw(item));
        return null;
      } catch (error) {
        answer.leave(error.name === "AbortError" ? "stopped" : "broken off");
        return error;
      }
    }));
    this.end(item, problems);
  }

  start() {
    this.abort = new AbortController();
    this.showProblem("");
    this.part("status").textContent = "Unmasking …";
    this.part("send").disabled = true;
    this.part("stop").hidden = false;
    this.form.classList.add("is-asking");
  }

  draw(item) {
    if (this.timer) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      item.panels = item.answers.map((answer) => answer.data);
      this.player.update(item);
    }, DRAW_EVERY_MS);
  }

  end(item, problems) {
    clearTimeout(this.timer);
    this.timer = this.abort = null;
    const hadFocus = document.activeElement === this.part("stop");
    this.part("send").disabled = false;
    this.part("stop").hidden = true;
    this.form.classList.remove("is-asking");
    if (hadFocus) this.part("question").focus(); // a button that vanishes takes the focus along

    item.panels = item.answers.map((answer) => answer.data);
    if (item.panels.some((data) => data.numSteps)) {
      this.player.update(item);
      this.showItems();
    } else { // nothing came: nothing to keep
      this.items.splice(this.items.indexOf(item), 1);
      this.showItems();
      if (this.seenBefore) this.player.select(this.seenBefore);
      this.player.goTo(Infinity);
    }
    theFiles.part("download").hidden = !this.records.length;

    const isStopped = problems.some((error) => error && error.name === "AbortError");
    const errors = problems.map((error, i) => (error && error.name !== "AbortError" ? [item.labels[i], error.message] : null)).filter(Boolean);
    const isSame = errors.length === problems.length && new Set(errors.map(([, message]) => message)).size === 1;
    this.showProblem(isSame ? errors[0][1] : errors.map(([label, message]) => (label ? `${label}: ${message}` : message)).join(" "));
    this.part("status").textContent = isStopped ? "Stopped." : errors.length === problems.length ? "" : this.sum(item);
    if (problems.some((error) => error && error.status === 401)) {
      this.form.querySelector("details").open = true;
      this.part("key").focus();
    }
  }

  /* Of the answers that were finished, in words. */
  sum(item) {
    return item.answers.map(({ record }, i) => {
      if (!record) return "";
      const { num_response_tokens: numTokens, num_forwards: numForwards, seed } = record.trace;
      const rate = (numTokens / Math.max(1, numForwards)).toFixed(2);
      return `${item.labels[i] && `${item.labels[i]}: `}${numTokens} tokens in ${numForwards} forwards, ${rate} per forward, seed ${seed}`;
    }).filter(Boolean).join(" · ");
  }

  /* Lines for a traces.jsonl: the answers that were finished. */
  get records() { return this.items.flatMap((item) => item.answers).map((answer) => answer.record).filter(Boolean); }

  showItems(selected) {
    this.player.setGroup("session", "This session", this.items);
    if (selected) this.player.select(selected);
  }

  isValid() {
    const question = this.part("question");
    if (!question.value.trim()) question.value = ""; // which its `required` refuses
    const wrong = Array.from(this.form.elements).find((field) => field.willValidate && !field.checkValidity());
    if (!wrong) return true;
    if (wrong.closest("details")) wrong.closest("details").open = true;
    wrong.reportValidity();
    return false;
  }

  showProblem(text) {
    this.part("problem").textContent = text;
  }

  download() {
    const link = document.createElement("a");
    const lines = this.records.map((record) => `${JSON.stringify(record)}\n`);
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = "traces.jsonl";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  listen() {
    this.form.noValidate = true; // isValid says it, also where the settings are folded
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    this.form.addEventListener("input", () => this.showSettings());
    this.part("question").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.ask();
    });
    this.part("stop").addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.stop(); });
    theFiles.part("download").addEventListener("click", () => this.download());
  }

  stop() {
    if (this.abort) this.abort.abort();
  }
}

const theLivePage = new LivePage(
  document.getElementById("ask"), thePlayer, JSON.parse(document.getElementById("live-data").textContent).defaults);
