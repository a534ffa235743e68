import alluxio.AlluxioURI;
import alluxio.client.file.FileInStream;
import alluxio.client.file.FileOutStream;
import alluxio.client.file.FileSystem;
import alluxio.grpc.CreateFilePOptions;
import alluxio.grpc.WritePType;
import java.security.MessageDigest;
import java.util.HexFormat;

/** Reads an input, writes every byte of it inverted as output, says size and SHA-256 of both. */
public final class Processor {
  public static void main(String[] arguments) throws Exception {
    AlluxioURI input = new AlluxioURI(arguments[0]);
    AlluxioURI output = new AlluxioURI(arguments[1]);
    System.setProperty("alluxio.master.hostname", java.net.URI.create(arguments[0]).getHost());
    MessageDigest read = MessageDigest.getInstance("SHA-256");
    MessageDigest written = MessageDigest.getInstance("SHA-256");
    long size = 0;
    FileSystem files = FileSystem.Factory.get();
    CreateFilePOptions options =
        CreateFilePOptions.newBuilder()
            .setRecursive(true)
            .setWriteType(WritePType.CACHE_THROUGH)
            .build();
    try (FileInStream in = files.openFile(new AlluxioURI(input.getPath()));
        FileOutStream out = files.createFile(new AlluxioURI(output.getPath()), options)) {
      byte[] buffer = new byte[1 << 20];
      for (int count = in.read(buffer); count >= 0; count = in.read(buffer)) {
        read.update(buffer, 0, count);
        for (int i = 0; i < count; i++) {
          buffer[i] = (byte) ~buffer[i];
        }
        written.update(buffer, 0, count);
        out.write(buffer, 0, count);
        size += count;
      }
    }
    HexFormat hex = HexFormat.of();
    System.out.println(size + " " + hex.formatHex(read.digest()) + " " + hex.formatHex(written.digest()));
  }
}
