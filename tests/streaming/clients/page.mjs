// The pages in a real browser, one scenario a run: `node page.mjs URL SCENARIO CHROMIUM`.
import assert from "node:assert/strict";
import net from "node:net";
import { chromium } from "playwright-core";

const [url, name, executablePath] = process.argv.slice(2);
const LONG = "tock ".repeat(150).trim();

const scenarios = {
  async ask(page) {
    await page.goto(url);
    await hold(0.05);
    await page.keyboard.type("Write some markdown");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#stop:visible");
    await hold(Infinity);
    await idle(page);
    const answer = page.locator(".assistant .text");
    assert.equal(await answer.locator("h5").textContent(), "Title");
    assert.equal(await answer.locator("ol > li").count(), 2);
    assert.equal(await answer.locator("ol ul li code").textContent(), "x < 1");
    assert.equal(await answer.locator("pre code").textContent(), "a = 1\n\nb = [**2]");
    assert.equal(await answer.locator("a").getAttribute("href"), "https://example.com/a_b");
    assert.match(await page.locator(".assistant .figures").textContent(), /tokens\/s · first after .* · \d+ tokens/);
    await becomes(page, "#title", "Write some markdown");
  },

  async early(page) {
    let answered;
    const asked = new Promise((resolve) => (answered = resolve));
    await page.route("**/v1/models", (route) => asked.then(() => route.continue()));
    await page.goto(url);
    await ask(page, "sky"); // before the page knows which model is served
    await says(page, "Rayleigh scattering.");
    answered();
    await becomes(page, "#model", "scripted");
    await says(page, "Rayleigh scattering.");
    await counts(page, ".message", 2);
    await page.reload();
    await says(page, "Rayleigh scattering.");
  },

  async stop(page) {
    await page.goto(url);
    await hold(0.4);
    await ask(page, "slow");
    await spoken(page, 20);
    await page.keyboard.press("Escape");
    await idle(page);
    assert.match(await page.locator(".assistant .figures").textContent(), /stopped/);
    await ask(page, "sky");
    await idle(page);
    await says(page, "Rayleigh scattering.");
  },

  async reload(page) {
    await page.goto(url);
    await hold(0.4);
    await ask(page, "long");
    for (const length of [30, 200]) {
      await spoken(page, length);
      await page.reload();
    }
    await page.waitForSelector("#stop:visible");
    await hold(Infinity);
    await says(page, LONG);
    await idle(page);
    await says(page, LONG);
    await counts(page, ".message", 2);
    assert.match(await page.locator(".assistant .figures").textContent(), /tokens\/s/);
    await page.reload();
    await says(page, LONG);
  },

  async closed(page, context) {
    await page.goto(url);
    await hold(0.4);
    await ask(page, "long");
    await spoken(page, 30);
    await page.close();
    const later = await context.newPage();
    await later.goto(url);
    await later.click("#chats .open");
    await spoken(later, 100);
    await hold(Infinity);
    await says(later, LONG);
    await idle(later);
    await says(later, LONG);
  },

  async tabs(page, context) {
    await page.goto(url);
    await hold(0.4);
    await ask(page, "long");
    await spoken(page, 20);
    const other = await context.newPage();
    await other.goto(page.url());
    await spoken(other, 40);
    await hold(Infinity);
    await Promise.all([idle(page), idle(other)]);
    await Promise.all([says(page, LONG), says(other, LONG)]);
    await hold(0.4);
    await ask(page, "slow");
    await spoken(other, 20);
    await other.click("#stop");
    await Promise.all([idle(page), idle(other)]);
    await counts(other, ".message", 4);
  },

  async rewritten(page, context) {
    await page.goto(url);
    await hold(0.4);
    await ask(page, "long");
    await spoken(page, 20);
    const other = await context.newPage();
    await other.addInitScript(() => {
      const send = WebSocket.prototype.send;
      window.held = [];
      window.rewrites = 0;
      addEventListener("storage", () => window.rewrites++);
      WebSocket.prototype.send = function (frame) {
        window.held.push(() => send.call(this, frame));
      };
      window.release = () => {
        WebSocket.prototype.send = send;
        for (const say of window.held) say();
      };
    });
    await other.goto(page.url());
    await other.waitForFunction(() => window.held.length > 0);
    for (const updatedAt of [1, 2]) {
      await page.evaluate((updatedAt) => {
        const [key] = Object.keys(localStorage).filter((key) => key.startsWith("jitney.chat."));
        localStorage.setItem(key, JSON.stringify({ ...JSON.parse(localStorage.getItem(key)), updatedAt }));
      }, updatedAt);
      await other.waitForFunction((updatedAt) => window.rewrites >= updatedAt, updatedAt);
    }
    await other.evaluate(() => window.release());
    await hold(0.4);
    await spoken(other, 60);
    await hold(Infinity);
    await Promise.all([idle(page), idle(other)]);
    await Promise.all([says(page, LONG), says(other, LONG)]);
  },

  async cut(page) {
    const wire = await cuttable();
    await page.goto(wire.url);
    await hold(0.4);
    await ask(page, "long");
    for (const length of [20, 100, 300]) {
      await spoken(page, length);
      wire.cut();
    }
    wire.isDown = true;
    wire.cut();
    await page.waitForFunction(() => document.getElementById("state").textContent === "Reconnecting");
    wire.isDown = false;
    await hold(Infinity);
    await says(page, LONG);
    await idle(page);
    await says(page, LONG);
    await counts(page, ".message", 2);
    wire.close();
  },

  async offline(page, context) {
    const wire = await cuttable();
    await page.goto(wire.url);
    await hold(0.4);
    await ask(page, "slow");
    await spoken(page, 20);
    wire.isDown = true;
    wire.cut();
    await page.waitForFunction(() => document.getElementById("state").textContent === "Reconnecting");
    await page.keyboard.press("Escape");
    await idle(page);
    const dashboard = await context.newPage();
    await dashboard.goto(`${url}/dashboard`);
    await dashboard.waitForFunction(() => document.querySelectorAll("#seats li").length === 1);
    wire.isDown = false; // only now the server hears of it
    await dashboard.getByText("Every seat is free.").waitFor();
    assert.match(await page.locator(".assistant .figures").textContent(), /stopped/);
    wire.close();
  },

  async lost(page) {
    const wire = await cuttable();
    await page.goto(wire.url);
    wire.isDeaf = true; // the question leaves the page and never arrives
    await ask(page, "sky");
    await page.waitForTimeout(100);
    wire.isDeaf = false;
    wire.cut();
    await idle(page);
    await says(page, "Rayleigh scattering.");
    wire.close();
  },

  async edit(page) {
    await page.goto(url);
    await ask(page, "first");
    await idle(page);
    await ask(page, "second");
    await idle(page);
    await page.locator(".assistant").last().getByText("Regenerate").click();
    await idle(page);
    await counts(page, ".message", 4);
    await page.locator(".user").first().hover();
    await page.locator(".user").first().getByText("Edit").click();
    await page.keyboard.press("Control+A");
    await page.keyboard.type("sky");
    await page.keyboard.press("Enter");
    await idle(page);
    await counts(page, ".message", 2);
    await says(page, "Rayleigh scattering.");
  },

  async conversations(page) {
    await page.goto(url);
    await hold(0.4);
    await ask(page, "long one");
    await spoken(page, 20);
    await page.click("#new");
    await ask(page, "sky");
    await idle(page);
    await counts(page, "#chats .running", 1);
    await page.locator("#chats .open", { hasText: "long one" }).click();
    await hold(Infinity);
    await says(page, LONG);
    await idle(page);
    await says(page, LONG);
    await page.reload();
    await counts(page, "#chats li", 2);
    page.once("dialog", (dialog) => dialog.accept());
    await page.locator("#chats li.current .remove").click();
    await counts(page, "#chats li", 1);
    await becomes(page, "#title", "New conversation");
  },

  async markup(page) {
    page.on("dialog", () => assert.fail("script ran"));
    await page.goto(url);
    await ask(page, "evil");
    await idle(page);
    const answer = page.locator(".assistant .text");
    assert.match(await answer.textContent(), /<img src=x onerror=alert\(1\)>/);
    assert.equal(await answer.locator("img, script, iframe, b, svg, a").count(), 0);
    await ask(page, "<img src=x onerror=alert(1)>");
    await idle(page);
    assert.equal(await page.locator(".message img, .message script, #chats img").count(), 0);
  },

  async settings(page) {
    await page.goto(url);
    await page.keyboard.press("Alt+S");
    await page.fill("[name=max_tokens]", "4");
    await page.fill("[name=system]", "Be brief.");
    await page.keyboard.press("Escape");
    await ask(page, "sky");
    await idle(page);
    await says(page, "Rayl");
    assert.match(await page.locator(".assistant .figures").textContent(), /cut at the longest answer/);
    await page.click("#open-settings");
    await page.click("[value=reset]");
    await page.fill("[name=temperature]", "1.99");
    await page.click("[value=save]");
    await ask(page, "sky");
    await idle(page);
    await says(page, "Rayleigh scattering.");
  },

  async reasoning(page) {
    await page.goto(url);
    await ask(page, "think");
    await idle(page);
    for (const _ of [1, 2]) {
      assert.equal(await page.locator(".assistant .reasoning p").textContent(), "let me <b>see</b>");
      await says(page, "It is 4.");
      assert.equal(await page.locator(".user .reasoning").isVisible(), false);
      await page.reload();
    }
    await ask(page, "sky");
    await idle(page);
    await says(page, "Rayleigh scattering.");
  },

  async refused(page) {
    await page.goto(url);
    await page.evaluate(() => localStorage.setItem("jitney.settings", JSON.stringify({ temperature: 9 })));
    await ask(page, "sky");
    await page.getByText("temperature: expected a number from 0 to 2").waitFor();
    await page.evaluate(() => localStorage.removeItem("jitney.settings"));
    await page.getByText("Send again").click();
    await idle(page);
    await says(page, "Rayleigh scattering.");
    assert.equal(await page.locator(".error:visible").count(), 0);
  },

  async key(page) {
    const wire = await cuttable();
    await page.goto(wire.url);
    await page.fill("[name=key]", "wrong");
    await page.keyboard.press("Enter");
    await page.getByText("That key is not valid here.").waitFor();
    await page.fill("[name=key]", "secret");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#key", { state: "hidden" });
    await hold(0.4);
    await ask(page, "long");
    await spoken(page, 30);
    await page.reload();
    await spoken(page, 100);
    wire.cut(); // each connection has a ticket of its own
    await hold(Infinity);
    await says(page, LONG);
    await idle(page);
    await says(page, LONG);
    wire.close();
  },

  async phone(page) {
    await page.setViewportSize({ width: 360, height: 640 });
    await page.emulateMedia({ colorScheme: "dark" });
    await page.goto(url);
    await ask(page, "Write some markdown");
    await idle(page);
    const overflow = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok((await overflow()) <= 0);
    assert.equal(await page.locator("#sidebar").isVisible(), false);
    await page.click("#menu");
    await page.locator("#chats .open").click();
    await page.waitForSelector("#sidebar", { state: "hidden" });
    assert.ok((await page.locator("#composer").boundingBox()).y < 640);
    const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(paper, "rgb(23, 22, 20)");
  },

  async dashboard(page, context) {
    await page.goto(`${url}/dashboard`);
    await page.waitForSelector("#state.ready");
    const chat = await context.newPage();
    await chat.goto(url);
    await chat.evaluate(() => localStorage.setItem("jitney.settings", JSON.stringify({ max_tokens: 7000 })));
    await ask(chat, "slow");
    await page.waitForFunction(() => document.querySelectorAll("#seats li").length === 1);
    assert.match(await page.locator("#seats .about").textContent(), /of ≤ .* tokens|reading/);
    await page.waitForFunction(() => /^[1-9]/.test(document.querySelector("#numbers dd").textContent));
    await chat.keyboard.press("Escape");
    await page.getByText("Every seat is free.").waitFor();
    await page.waitForFunction(() =>
      ["tokens", "first", "gap", "pages"].every((id) => {
        const canvas = document.getElementById(id);
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return data.some((value) => value);
      }),
    );
  },

  async client(page) {
    await page.goto(url);
    const heard = await page.evaluate(async (base) => {
      const { ChatClient, userMessage } = await import(`${base}/client.js`);
      const states = [];
      const client = new ChatClient({ onState: (state) => states.push(state) });
      const ask = (id, text, body) => client.send({ id, messages: [userMessage(text)], body });
      const events = [];
      for await (const event of ask("a", "sky")) events.push(event);
      const joined = events.filter(({ type }) => type === "text").map(({ delta }) => delta).join("");
      for await (const event of ask("b", "slow")) if (event.type === "text" && event.text.length > 20) break;
      const refusal = await (async () => {
        for await (const event of ask("c", "sky", { temperature: 9 })) void event;
      })().catch((error) => `${error.code}: ${error.message}`);
      const again = await client.resume("a");
      for await (const event of again) void event;
      const none = await client.resume("never");
      client.close();
      const late = await client.resume("a").catch((error) => error.code);
      return { joined, last: events.at(-1), refusal, again: again.text, none, late, states };
    }, url);
    assert.equal(heard.joined, "Rayleigh scattering.");
    assert.equal(heard.last.finishReason, "stop");
    assert.ok(heard.last.metadata.usage.outputTokens === 21);
    assert.match(heard.refusal, /^refused: .*temperature/);
    assert.equal(heard.again, "Rayleigh scattering.");
    assert.equal(heard.none, null);
    assert.equal(heard.late, "closed");
    assert.deepEqual(heard.states, ["connecting", "open", "closed"]);
  },
};

/** Answers that take their time stand still when they have had so many more seconds of it; `Infinity` lets them go on. */
const hold = (afterS) =>
  fetch(`${url}/hold/${afterS === Infinity ? "inf" : afterS}`, { headers: { authorization: "Bearer secret" } });

async function ask(page, question) {
  await page.fill("#question", question);
  await page.press("#question", "Enter");
}

/** Until the last message is an answer of at least so many characters that is still being written. */
const spoken = (page, length) =>
  page.waitForFunction(
    (length) => (document.querySelector(".message:last-child.streaming .text")?.textContent.length ?? 0) >= length,
    length,
  );
const idle = (page) => page.waitForSelector("#send:visible");
/** What a page shows follows what it is told, and after a reload what it stored: what is expected is waited for. A page
 * that has just come back may be idle for a moment, before it resumes. */
const becomes = (page, selector, words) =>
  page.waitForFunction(
    ([selector, words]) => [...document.querySelectorAll(selector)].at(-1)?.textContent === words,
    [selector, words],
  );
const says = (page, words) => becomes(page, ".assistant .text", words);
const counts = (page, selector, number) =>
  page.waitForFunction(
    ([selector, number]) => document.querySelectorAll(selector).length === number,
    [selector, number],
  );

/** The server behind a wire that can be cut. */
async function cuttable() {
  const { hostname, port } = new URL(url);
  const ends = new Set();
  const wire = { isDown: false, isDeaf: false };
  const server = net.createServer((near) => {
    if (wire.isDown) return near.destroy();
    const far = net.connect(Number(port), hostname);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ]) {
      ends.add(from);
      from.on("data", (data) => (wire.isDeaf && from === near ? null : to.write(data)));
      from.on("close", () => to.destroy());
      from.on("error", () => to.destroy());
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  wire.url = `http://127.0.0.1:${server.address().port}`;
  wire.cut = () => {
    for (const end of ends) end.destroy();
    ends.clear();
  };
  wire.close = () => {
    wire.cut();
    server.close();
  };
  return wire;
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"], timeout: 90_000 });
const context = await browser.newContext();
const page = await context.newPage();
const complaints = [];
context.on("page", (opened) => opened.on("pageerror", (error) => complaints.push(error.stack)));
page.on("pageerror", (error) => complaints.push(error.stack));
context.setDefaultTimeout(60_000);
try {
  await scenarios[name](page, context);
  assert.deepEqual(complaints, []);
} catch (error) {
  for (const open of context.pages()) console.error(await open.locator("body").innerText().catch(() => ""));
  throw error;
} finally {
  await browser.close();
}
console.log("ok");
