// Looks at the page with Chromium as people do: wide and narrow, light and dark, by keyboard, by what a screen reader is told, without
// scripts. Reads what to look at from standard input: {scenario, url, token, tools, shots}; fails where something is not right.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const { scenario, url, token, tools, shots } = JSON.parse(fs.readFileSync(0, 'utf8'));
const require = createRequire(path.join(tools, 'package.json'));
const { chromium } = require('playwright-core');
const axeSource = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const WIDE = { width: 1600, height: 1000 };
const NARROW = { width: 360, height: 740 };
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';

const browser = await chromium.launch({ executablePath, args: FLAGS });

// A browser window of its own, in which everything that should not happen is noted.
async function open(options = {}) {
  const context = await browser.newContext({ viewport: WIDE, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20000);
  const wrong = [];
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) wrong.push(`asks ${request.url()}`);
    if (request.url().includes(token)) wrong.push('a token in an address');
  });
  page.on('pageerror', (error) => wrong.push(`script: ${error}`));
  page.on('console', (message) => {
    // What a browser says of an answer that is not 200 is no mistake of the page.
    if (message.type() === 'error' && !message.text().startsWith('Failed to load resource')) wrong.push(message.text());
  });
  page.on('dialog', (dialog) => {
    wrong.push(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  return { context, page, wrong };
}

// Signs in by keyboard alone. Where the API server is too busy to say whose the token is, people are told to try again, and do.
async function signIn(page) {
  await page.goto(url);
  const until = Date.now() + 60000;
  for (;;) {
    // The field has the focus once the page is drawn, which may be after it is loaded.
    await page.locator('#token:focus').waitFor();
    await page.keyboard.type(token);
    const answered = page.waitForResponse((answer) => answer.request().method() === 'POST' && answer.url().endsWith('/sign-in'));
    await page.keyboard.press('Enter');
    const status = (await answered).status();
    if (status === 303) break;
    await page.waitForLoadState();
    const told = await page.locator('body').innerText();
    assert.ok([429, 503].includes(status) && Date.now() < until, `signing in: ${status}: ${told}`);
    console.log(`signing in: ${status}, once more`);
  }
  await page.locator('#overview').waitFor();
}

async function shot(page, name) {
  await page.screenshot({ path: path.join(shots, `${scenario}-${name}.png`), fullPage: true });
}

// Nothing sticks out, and axe finds nothing.
async function sound(page, name) {
  const { inner, wide, who } = await page.evaluate(() => ({
    inner: innerWidth,
    wide: document.documentElement.scrollWidth,
    who: [...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => `${one.tagName}.${one.className}`).slice(0, 5),
  }));
  assert.ok(wide <= inner, `${name}: ${wide} px in ${inner}: ${who}`);
  await page.evaluate(axeSource);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ['violations'] }));
  const violations = found.violations.map(({ id, help, nodes }) => ({ id, help, nodes: nodes.slice(0, 3).map(({ html, failureSummary }) => ({ html, failureSummary })) }));
  assert.deepEqual(violations, [], `${name}: ${JSON.stringify(violations, null, 1)}`);
  assert.ok(found.passes.length > 10, 'axe has looked');
}

// What a screen reader is told: landmarks, and tables with names, columns and headers.
async function told(page, name) {
  const session = await page.context().newCDPSession(page);
  const { nodes } = await session.send('Accessibility.getFullAXTree');
  await session.detach();
  const heard = nodes.filter((node) => !node.ignored);
  const of = (role) => heard.filter((node) => node.role?.value === role);
  for (const role of ['banner', 'search', 'main', 'contentinfo', 'status']) assert.equal(of(role).length, 1, `${name}: ${role}`);
  assert.ok(of('navigation').every((node) => node.name.value), `${name}: every navigation has a name`);
  const tables = of('table');
  for (const table of tables) assert.ok(table.name.value, `${name}: every table has a name`);
  assert.equal(of('heading').filter((node) => node.properties.some(({ name, value }) => name === 'level' && value.value === 1)).length, 1);
  if (tables.length) {
    assert.ok(of('columnheader').length >= 5 * tables.length, `${name}: columns have headers`);
    const rows = of('row').length - tables.length;
    assert.equal(of('rowheader').length, rows, `${name}: so have rows`);
    assert.ok(of('cell').length >= 4 * rows, `${name}: ${of('cell').length} cells`);
  }
  return tables.length;
}

// The whole way with the tab key: everything that can be used is reached, and seen to be.
async function byKeyboard(page) {
  await page.goto(url);
  await page.locator('#overview').waitFor();
  const usable = await page.evaluate(() => [...document.querySelectorAll('a[href], button, input, summary, [tabindex="0"]')].filter((one) => one.offsetParent !== null || getComputedStyle(one).position === 'fixed').length);
  const clickable = await page.evaluate(() => document.querySelectorAll('[onclick], [role="button"]:not(button), [tabindex]:not([tabindex="0"]):not([tabindex="-1"])').length);
  assert.equal(clickable, 0, 'nothing is for the mouse alone');
  let reached = 0;
  for (; reached < usable + 5; reached += 1) {
    await page.keyboard.press('Tab');
    const at = await page.evaluate(() => {
      const one = document.activeElement;
      if (one === document.body) return null;
      const style = getComputedStyle(one);
      const box = one.getBoundingClientRect();
      const middle = document.elementFromPoint(box.left + Math.min(box.width / 2, 40), box.top + box.height / 2);
      return {
        what: `${one.tagName} ${one.textContent.trim().slice(0, 40)}`,
        outlined: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
        seen: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.left >= 0 && middle !== null && (one.contains(middle) || middle.contains(one)),
        text: one.textContent,
      };
    });
    if (at === null) break;
    if (reached === 0) assert.match(at.text, /Skip to the content/);
    assert.ok(at.outlined, `focus is seen on ${at.what}`);
    assert.ok(at.seen, `${at.what} is in sight`);
  }
  assert.equal(reached, usable, 'everything is reached');
  await page.goto(url);
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
}

async function everyShape(page, name) {
  for (const [shape, viewport] of [['wide', WIDE], ['narrow', NARROW]]) {
    await page.setViewportSize(viewport);
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      await sound(page, `${name} ${shape} ${colorScheme}`);
      await shot(page, `${name}-${shape}-${colorScheme}`);
    }
    await told(page, `${name} ${shape}`);
  }
  await page.setViewportSize(WIDE);
  await page.emulateMedia({ colorScheme: 'light' });
}

const scenarios = {
  // Nobody has signed in, and then somebody has, and there is nothing to see.
  async empty() {
    const { context, page, wrong } = await open();
    const answer = await page.goto(url);
    assert.equal(answer.status(), 401);
    assert.equal(await page.evaluate(() => document.activeElement.id), 'token');
    for (const [shape, viewport] of [['wide', WIDE], ['narrow', NARROW]]) {
      await page.setViewportSize(viewport);
      for (const colorScheme of ['light', 'dark']) {
        await page.emulateMedia({ colorScheme });
        await sound(page, `entrance ${shape} ${colorScheme}`);
        await shot(page, `entrance-${shape}-${colorScheme}`);
      }
    }
    await page.setViewportSize(WIDE);
    await page.keyboard.type('no token of theirs');
    await page.keyboard.press('Enter');
    await page.getByRole('alert').waitFor();
    await sound(page, 'refused');
    await shot(page, 'refused');
    await signIn(page);
    const [cookie, ...others] = await context.cookies();
    assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path, others.length], [true, 'Strict', '/', 0]);
    assert.ok(!cookie.value.includes(token.slice(0, 20)) && !(await page.content()).includes(token));
    assert.equal(await page.evaluate(() => localStorage.length + sessionStorage.length + document.cookie.length), 0);
    await everyShape(page, 'page');
    await byKeyboard(page);
    await page.getByRole('button', { name: 'Sign out' }).press('Enter');
    await page.locator('#token').waitFor();
    assert.equal((await page.goto(url)).status(), 401);
    return wrong;
  },

  // A little of everything.
  async some() {
    const { page, wrong } = await open();
    await signIn(page);
    await everyShape(page, 'page');
    await byKeyboard(page);
    assert.equal(await told(page, 'some'), 4);
    // What was written to be a script is a text.
    assert.ok((await page.locator('#reviews').innerText()).includes('<script>alert(1)</script>'));
    // To what one looks for, by keyboard alone.
    await page.locator('#q').focus();
    await page.keyboard.type('alice');
    await page.keyboard.press('Enter');
    await page.waitForURL(/q=alice/);
    assert.ok(!(await page.locator('#tenants').innerText()).includes('bob'));
    await everyShape(page, 'search');
    await page.getByRole('link', { name: 'Show everything' }).press('Enter');
    await page.waitForURL(url);
    await page.locator('#tenants-refused').press('Enter');
    await page.waitForURL(/state=refused/);
    assert.equal(await page.locator('#tenants-refused').getAttribute('aria-current'), 'true');
    const summary = page.locator('#reviews summary').first();
    await summary.press('Enter');
    assert.ok(await page.locator('#reviews details dl').first().isVisible());
    for (const details of await page.locator('details').all()) await details.evaluate((one) => (one.open = true));
    await everyShape(page, 'open');
    return wrong;
  },

  // Without scripts it is the same page.
  async still() {
    const { page, wrong } = await open({ javaScriptEnabled: false });
    await signIn(page);
    assert.ok(!(await page.locator('#pause').isVisible()), 'what would do nothing is not there');
    assert.ok((await page.locator('#tenants tbody tr').count()) > 1);
    await page.locator('#q').fill('alice');
    await page.locator('#q').press('Enter');
    await page.waitForURL(/q=alice/);
    await page.locator('#tenants tbody tr').first().waitFor();
    await shot(page, 'page');
    return wrong;
  },

  // Reviews come all the time while somebody reads.
  async live() {
    const { page, wrong } = await open();
    await signIn(page);
    await page.locator('#live[data-state="live"]').waitFor();
    const first = () => page.locator('#reviews tbody th').first().innerText();
    const begin = await first();
    await page.waitForFunction((begin) => document.querySelector('#reviews tbody th').innerText !== begin, begin);
    // What somebody has opened stays open, where they are they stay, and what they mark stays as it is.
    const key = await page.evaluate(() => {
      const details = document.querySelector('#reviews details');
      details.open = true;
      details.querySelector('summary').focus();
      return details.dataset.key;
    });
    await page.waitForFunction((key) => document.querySelector('#reviews details').dataset.key !== key, key);
    assert.deepEqual(
      await page.evaluate(() => {
        const details = document.activeElement.closest('details');
        return [details.dataset.key, details.open];
      }),
      [key, true],
    );
    // Nobody is told of every one of them, since nobody could listen to anything else.
    assert.equal(await page.locator('#announced').innerText(), '');
    await page.locator('#pause').press('Enter');
    assert.equal(await page.locator('#announced').innerText(), 'Paused');
    const paused = await first();
    await page.waitForFunction(() => waiting.has('reviews'));
    assert.equal(await first(), paused);
    await page.locator('#pause').press('Enter');
    await page.waitForFunction((paused) => document.querySelector('#reviews tbody th').innerText !== paused, paused);
    await shot(page, 'page');
    return wrong;
  },

  // Ten thousand tenants.
  async many() {
    const { page, wrong } = await open();
    await signIn(page);
    const began = Date.now();
    await page.reload();
    const took = Date.now() - began;
    const size = (await page.content()).length;
    console.log(`10,000 tenants: loaded in ${took} ms, ${size} bytes`);
    assert.ok(size < 100_000, `${size} bytes`);
    assert.match(await page.locator('#overview').innerText(), /10,0\d\d/);
    assert.equal(await page.locator('#tenants tbody tr').count(), 15);
    await everyShape(page, 'page');
    await page.locator('#tenants-next').press('Enter');
    await page.waitForURL(/tenants=15/);
    assert.match(await page.locator('#tenants').innerText(), /16 to 30 of 10,0/);
    await page.locator('#q').fill('crowd-09999');
    await page.locator('#q').press('Enter');
    await page.waitForURL(/q=crowd-09999/);
    assert.equal(await page.locator('#tenants tbody tr').count(), 1);
    return wrong;
  },
};

try {
  const wrong = await scenarios[scenario]();
  assert.deepEqual(wrong, [], 'what should not happen');
  console.log(`${scenario}: as it should be, in ${browser.version()}`);
} finally {
  await browser.close();
}
