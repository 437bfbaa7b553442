// A client that logs in, selects INBOX, waits in IDLE for a message, prints its subject and
// logs out. The test waits for the lines it prints.
import { webcrypto } from 'node:crypto';
import { readFileSync } from 'node:fs';

globalThis.crypto ??= webcrypto; // Node 18 of Debian 12 has no global crypto
const { ImapFlow } = await import('imapflow');

const { IMAP_HOST, IMAP_PORT, IMAP_USER, IMAP_PASSWORD, IMAP_CA, IMAP_SERVER_NAME } = process.env;

const log = entry => {
    // The server has accepted IDLE, so it must report new mail from now on.
    if (entry.src === 's' && /^\+ idling/.test(entry.msg ?? '')) {
        console.log('idling');
    }
};

const client = new ImapFlow({
    host: IMAP_HOST,
    port: Number(IMAP_PORT),
    secure: true,
    auth: { user: IMAP_USER, pass: IMAP_PASSWORD },
    tls: { ca: readFileSync(IMAP_CA), servername: IMAP_SERVER_NAME },
    logger: { debug: log, info: log, warn: log, error: log }
});

await client.connect();
const lock = await client.getMailboxLock('INBOX');
try {
    const arrived = new Promise(resolve => client.once('exists', resolve));
    const idle = client.idle();
    const { count } = await arrived;
    const message = await client.fetchOne(count, { envelope: true, source: true });
    await idle;
    console.log(`subject ${message.envelope.subject}`);
    console.log(`bytes ${message.source.length}`);
    await client.messageFlagsAdd(count, ['\\Seen']);
} finally {
    lock.release();
}
await client.logout();
console.log('logged out');
