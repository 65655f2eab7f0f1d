// Asks for newer data every second; the answer is empty while nothing has changed.

const EVERY = 1000;

async function follow() {
  let tag = `"${state.page.version}"`;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, EVERY));
    try {
      const answer = await fetch("data.json", {
        headers: { "If-None-Match": tag },
        cache: "no-store",
        signal: AbortSignal.timeout(10 * EVERY),
      });
      if (answer.status !== 304 && !answer.ok) throw new Error(`${answer.status}`);
      const news = answer.status === 304 ? null : await answer.json();
      if (news) [state.page, tag] = [news, answer.headers.get("ETag") ?? `"${news.version}"`];
      if (news || state.connection !== "live") changed(() => (state.connection = "live"));
    } catch {
      if (state.connection !== "lost") changed(() => (state.connection = "lost"));
    }
  }
}
