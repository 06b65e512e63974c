import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.zip.CRC32;

/** A heap of the JVM whose every byte is known. test/e2e/heaps.ts says what pages hold and what is answered. */
public final class Main {
  static final int PAGE = 4096;
  static final int PAGES_MB = (1 << 20) / PAGE;
  static final int SPARE_MB = 16;
  static final int OBJECTS = 20_000;
  static final byte[] COMMON = new byte[PAGE];

  static {
    for (int i = 0; i < PAGE; i++) COMMON[i] = (byte) (i * 167 + (i >> 8) * 59 + 1);
  }

  static void fill(byte[] into, int at, long key) {
    System.arraycopy(COMMON, 0, into, at, PAGE);
    ByteBuffer.wrap(into).order(ByteOrder.LITTLE_ENDIAN).putLong(at, key);
  }

  /** Pages from a key on, in arrays of 1 to 32 pages, so that collectors have something to move. */
  static final class Run {
    final long key;
    final List<byte[]> arrays = new ArrayList<>();
    final Map<Integer, String> small = new HashMap<>();

    Run(int megabytes, long key) {
      this.key = key;
      long next = key;
      for (int left = megabytes * PAGES_MB; left > 0; ) {
        int count = Math.min(left, 1 + arrays.size() % 32);
        byte[] array = new byte[count * PAGE];
        for (int i = 0; i < count; i++) fill(array, i * PAGE, next++);
        arrays.add(array);
        left -= count;
      }
      for (int number = 0; number < OBJECTS; number++) small.put(number, "number " + number);
    }

    long wrong() {
      long wrong = 0;
      long next = key;
      byte[] expected = new byte[PAGE];
      for (byte[] array : arrays) {
        for (int at = 0; at < array.length; at += PAGE) {
          fill(expected, 0, next++);
          if (!Arrays.equals(array, at, at + PAGE, expected, 0, PAGE)) wrong++;
        }
      }
      for (int number = 0; number < OBJECTS; number++) {
        if (!("number " + number).equals(small.get(number))) wrong++;
      }
      return wrong;
    }
  }

  static Run kept;
  static Run spare;
  static final List<Run> grown = new ArrayList<>();
  static long nextKey = 2L << 40;
  static final String[] value = new String[1000];

  /** New memory has to be zeros: in small and in large arrays, and outside the heap. Gives the pieces that are not. */
  static long grow(int megabytes) {
    long dirty = 0;
    List<byte[]> fresh = new ArrayList<>();
    for (int i = 0; i < megabytes * 4; i++) fresh.add(new byte[PAGE * (1 + i % 100)]);
    fresh.add(new byte[megabytes << 20]);
    ByteBuffer direct = ByteBuffer.allocateDirect(megabytes << 20);
    fresh.add(new byte[direct.remaining()]);
    direct.get(fresh.get(fresh.size() - 1));
    for (byte[] array : fresh) {
      for (byte each : array) {
        if (each != 0) {
          dirty++;
          break;
        }
      }
    }
    fresh = null;
    grown.add(new Run(megabytes, nextKey));
    nextKey += (long) megabytes * PAGES_MB;
    return dirty;
  }

  static synchronized String answer(String path, String argument) {
    switch (path) {
      case "/sum": {
        CRC32 crc = new CRC32();
        long pages = 0;
        for (byte[] array : kept.arrays) {
          crc.update(array);
          pages += array.length / PAGE;
        }
        return "{\"pages\": " + pages + ", \"crc\": " + crc.getValue() + "}";
      }
      case "/check": {
        long wrong = kept.wrong() + (spare == null ? 0 : spare.wrong());
        for (Run run : grown) wrong += run.wrong();
        return "{\"wrong\": " + wrong + "}";
      }
      case "/gc":
        System.gc();
        return "{}";
      case "/grow":
        return "{\"dirty\": " + grow(Integer.parseInt(argument)) + "}";
      case "/release":
        spare = null;
        grown.clear();
        System.gc();
        return "{}";
      case "/write":
        Arrays.fill(value, argument);
        return "{}";
      case "/read":
        return "{\"value\": \"" + value[value.length - 1] + "\"}";
      default:
        return null;
    }
  }

  static void handle(HttpExchange exchange) throws IOException {
    String path = exchange.getRequestURI().getPath();
    String query = exchange.getRequestURI().getQuery();
    String argument = query == null ? "" : query.substring(query.indexOf('=') + 1);
    boolean health = path.equals("/healthz");
    String part = health ? "ok" : answer(path, argument);
    byte[] body = (health ? part : "[" + part + "]").getBytes(StandardCharsets.UTF_8);
    exchange.sendResponseHeaders(part == null ? 404 : 200, body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }

  public static void main(String[] arguments) throws IOException {
    String megabytes = System.getenv("HEAP_MB");
    kept = new Run(megabytes == null ? 64 : Integer.parseInt(megabytes), 0);
    spare = new Run(SPARE_MB, 1L << 40);
    Arrays.fill(value, "as dumped");
    HttpServer server = HttpServer.create(new InetSocketAddress(8080), 128);
    server.createContext("/", Main::handle);
    server.setExecutor(Executors.newFixedThreadPool(4));
    server.start();
    System.out.println("ready");
  }
}
